package sentinel

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Which sentinels there are, and in which order they are asked.

// peer is a sentinel that is known. Its fields are guarded by mu of the directory but for
// the first, which are only read.
type peer struct {
	addr   string
	key    string // the address as it is compared
	chosen bool   // the caller has named it: it stays known

	good   int     // the turn of its last answer, 0 when none came since it last failed, or ever
	failed int     // the turn of its last failure, 0 when there was none
	client *client // that has answered; nil: there is none
}

// addLocked notes a sentinel, unless it is known.
func (d *Directory) addLocked(addr string, chosen bool) {
	key := keyOf(addr)
	if !slices.ContainsFunc(d.peers, func(p *peer) bool { return p.key == key }) {
		d.peers = append(d.peers, &peer{addr: addr, key: key, chosen: chosen})
	}
}

// keyOf returns an address in the one form in which it is compared.
func keyOf(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return strings.ToLower(addr)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return net.JoinHostPort(strings.ToLower(host), port)
}

// candidates returns the sentinels to ask, in this order: those that gave an answer when
// they were last asked, the last one first; those that the caller has named; some of those
// that others have named. Of two that are alike the one is first that failed longer ago.
func (d *Directory) candidates() []*peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Clone(d.peers)
	slices.SortStableFunc(all, func(a, b *peer) int {
		switch {
		case a.good != b.good:
			return b.good - a.good
		case a.chosen != b.chosen:
			if a.chosen {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.failed, b.failed)
	})
	strangers := slices.IndexFunc(all, func(p *peer) bool { return p.good == 0 && !p.chosen })
	if strangers < 0 {
		return all
	}
	return all[:min(len(all), strangers+d.limits.Strangers)]
}

// hopeful reports whether an answer of p is to be expected.
func (d *Directory) hopeful(p *peer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return p.good > 0 || p.failed == 0
}

// discover takes over whom a sentinel knows: those it names are added, and those it takes
// for dead or does not name any more are dropped, but for those that the caller has named.
func (d *Directory) discover(ctx context.Context, from *peer, c *client) {
	ctx, cancel := context.WithTimeout(ctx, d.limits.Timeout)
	defer cancel()
	others, err := c.Sentinels(ctx, d.opt.MasterName).Result()
	if err != nil {
		return
	}
	named := map[string]bool{from.key: true}
	var dropped []*client
	d.mu.Lock()
	for _, o := range others {
		if addr := addrOf(o); addr != "" && !isDown(o) {
			named[keyOf(addr)] = true
			d.addLocked(addr, false)
		}
	}
	d.peers = slices.DeleteFunc(d.peers, func(p *peer) bool {
		if p.chosen || named[p.key] {
			return false
		}
		if p.client != nil {
			dropped = append(dropped, p.client)
			p.client = nil
		}
		return true
	})
	d.mu.Unlock()
	for _, c := range dropped {
		c.close()
	}
}

// addrOf returns the address in what a sentinel says of a server, "" when there is none.
func addrOf(server map[string]string) string {
	if server["ip"] == "" || server["port"] == "" {
		return ""
	}
	return net.JoinHostPort(server["ip"], server["port"])
}

// isDown reports whether a sentinel takes a server for dead, hasFlag whether it says
// something of it.
func isDown(server map[string]string) bool {
	return hasFlag(server, "s_down") || hasFlag(server, "o_down")
}

func hasFlag(server map[string]string, flag string) bool {
	return slices.Contains(strings.Split(server["flags"], ","), flag)
}
