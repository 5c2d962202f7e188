package redial

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// What the server knows of our connections. It is asked by the ids of clients, on another
// connection, about those that owe a reply for long, and told to end what they wait for.
// This uses links and connections; who has the other connection it does not know.
//
// Nothing counts but proof. Behind an address there may be several servers, and the other
// connection may lead to another one, where an id is unknown or belongs to somebody else.
// So a server has to vouch for a connection first: it lists the id with the very addresses
// that the server of the connection has told on the connection itself. Only when that same
// server does not list it any more, twice, does it not know the connection.

// errDisowned is why a connection is given up that its server does not know.
var errDisowned = errors.New("the server does not know the connection any more")

// inquiry asks about the connections of one link.
type inquiry struct {
	link *link
	via  func(context.Context, func(*redis.Client) error) error

	mutedUntil   atomic.Int64 // of the clock; nothing is asked before
	barredUntil  atomic.Int64 // of the clock; nothing is unblocked before
	askAt        atomic.Int64 // of the clock; when to look again for what to ask about
	mu           sync.Mutex
	asking       bool                     // guarded by mu; there is a goroutine for wanted
	unblocking   bool                     // guarded by mu; there is a goroutine for releases
	wanted       map[*wire.Conn]struct{}  // guarded by mu; to be asked about
	releases     []*release               // guarded by mu; to be unblocked
	known        map[*wire.Conn]*standing // guarded by mu
	answeredLast map[string]int64         // guarded by mu; when a server has last answered, by run id
}

// standing is what is known of a connection.
type standing struct {
	vouched *instance // has listed it; nil: nobody has
	asked   int64     // of the clock
	barren  int       // answers of servers that have not vouched and do not know it
	mute    int64     // of the clock; it is not asked about before
	missed  int64     // of the clock, when the one that vouched did not list it; 0: not so
	mark    int64     // the WaitsSince of the connection at that time
}

// instance is who answers: one process, seen on one address of its own.
type instance struct {
	run     string // its run id, "" when it is not to be known
	laddr   string // the address it is reached at, as it sees that
	host    string // the host that the other connection comes from, as it sees that
	self    command.Peer
	started int64 // of the clock, the earliest; when run is known
}

// is reports whether two answers are of one process. Where there is no run id they have to
// be of one connection.
func (s *instance) is(other *instance) bool {
	if s.run == "" || other.run == "" {
		return s.run == other.run && s.self.Is(other.self)
	}
	return s.run == other.run && s.laddr == other.laddr
}

// release is a connection that is to be unblocked.
type release struct {
	conn           *wire.Conn
	settled, freed bool          // as Unblock returns them; written before done is closed
	done           chan struct{} // closed when no more comes
}

func newInquiry(l *link, via func(context.Context, func(*redis.Client) error) error) *inquiry {
	return &inquiry{
		link: l, via: via,
		wanted:       make(map[*wire.Conn]struct{}),
		known:        make(map[*wire.Conn]*standing),
		answeredLast: make(map[string]int64),
	}
}

func (q *inquiry) Willing(now int64) bool { return now >= q.mutedUntil.Load() }

func (q *inquiry) Mute() { q.mutedUntil.Store(q.link.clock.Read() + int64(askMute)) }

// Met has the server vouch for a connection that has just learned how it is seen.
func (q *inquiry) Met(c *wire.Conn) { q.want([]*wire.Conn{c}) }

// Wonder has the server asked about what owes a reply for long.
func (q *inquiry) Wonder() {
	l := q.link
	now := l.clock.Read()
	if now < q.askAt.Load() || !q.Willing(now) || l.now() != StateConnected {
		return
	}
	q.askAt.Store(now + int64(askSpacing))
	if late := q.late(now); len(late) > 0 {
		q.want(late)
	}
}

// late returns connections that owe a reply for long, those first of which the most is to
// be feared, and forgets what is known of closed ones.
func (q *inquiry) late(now int64) []*wire.Conn {
	var all []*wire.Conn
	open := make(map[*wire.Conn]bool)
	q.link.Each(func(c *wire.Conn) {
		open[c] = true
		if c.ID() != 0 && c.WaitsSince() != 0 && now-c.WaitsSince() > int64(askAfter) && c.Retirement() == nil {
			all = append(all, c)
		}
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	maps.DeleteFunc(q.known, func(c *wire.Conn, _ *standing) bool { return !open[c] })
	all = slices.DeleteFunc(all, func(c *wire.Conn) bool { st := q.known[c]; return st != nil && now < st.mute })
	slices.SortFunc(all, func(a, b *wire.Conn) int {
		x, y := q.standingLocked(a), q.standingLocked(b)
		if (x.missed != 0) != (y.missed != 0) {
			return cmp.Compare(y.missed, x.missed)
		}
		return cmp.Compare(x.asked, y.asked)
	})
	return all[:min(len(all), askMost)]
}

func (q *inquiry) standingLocked(c *wire.Conn) *standing {
	st := q.known[c]
	if st == nil {
		st = new(standing)
		q.known[c] = st
	}
	return st
}

// want has the server asked about connections, by a goroutine that goes when there are
// none left.
func (q *inquiry) want(conns []*wire.Conn) {
	q.mu.Lock()
	for _, c := range conns {
		q.wanted[c] = struct{}{}
	}
	start := !q.asking
	q.asking = true
	q.mu.Unlock()
	if start {
		q.link.spawn(q.askAll)
	}
}

func (q *inquiry) askAll() {
	for {
		q.mu.Lock()
		var batch []*wire.Conn
		for c := range q.wanted {
			if len(batch) < askMost {
				batch = append(batch, c)
				delete(q.wanted, c)
			}
		}
		if len(batch) == 0 {
			q.asking = false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		q.ask(batch)
		q.link.pause(askPause)
	}
}

// ask asks about connections, and gives up those that the server does not know.
func (q *inquiry) ask(batch []*wire.Conn) {
	l := q.link
	if !q.Willing(l.clock.Read()) || l.now() != StateConnected {
		return
	}
	ids := make([]int64, len(batch))
	for i, c := range batch {
		ids[i] = c.ID()
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.timeout/2) // so that a heartbeat that waits for it has its own
	defer cancel()
	var by *instance
	var listed map[int64]command.Peer
	err := q.via(ctx, func(rdb *redis.Client) (err error) {
		cn := rdb.Conn() // one and the same, or the server is another
		defer cn.Close()
		if by, err = q.whoIs(ctx, cn); err != nil {
			return err
		}
		listed, err = list(ctx, cn, append(ids, by.self.ID))
		return err
	})
	switch {
	case err != nil && (isReply(err) || errors.Is(err, errNonsense)):
		q.Mute()
	case err != nil: // that is the heartbeat's to judge
	case !listed[by.self.ID].Is(by.self):
		q.Mute() // then it means nothing that another is not listed
	default:
		for _, c := range q.judge(batch, by, listed, l.clock.Read()) {
			c.Cut(errDisowned)
		}
	}
}

var errNonsense = errors.New("the server does not say which client is asking")

// whoIs asks a connection where it leads.
func (q *inquiry) whoIs(ctx context.Context, cn *redis.Conn) (*instance, error) {
	pipe := cn.Pipeline()
	self, about := pipe.Do(ctx, "client", "info"), pipe.Info(ctx, "server")
	if _, err := pipe.Exec(ctx); err != nil && !isReply(err) {
		return nil, err
	}
	text, err := self.Text()
	if err != nil {
		return nil, err
	}
	peer, ok := command.ParsePeer(text)
	if !ok {
		return nil, errNonsense
	}
	s := &instance{laddr: peer.Laddr, host: hostOf(peer.Addr), self: peer, run: command.InfoField(about.Val(), "run_id")}
	up, err := strconv.ParseInt(command.InfoField(about.Val(), "uptime_in_seconds"), 10, 64)
	if err != nil {
		s.run = "" // half of it is no description
		return s, nil
	}
	s.started = q.link.clock.Read() - int64(time.Duration(up+1)*time.Second)
	return s, nil
}

// list asks for clients by their ids.
func list(ctx context.Context, cn *redis.Conn, ids []int64) (map[int64]command.Peer, error) {
	args := []any{"client", "list", "id"}
	for _, id := range ids {
		args = append(args, id)
	}
	text, err := cn.Do(ctx, args...).Text()
	if err != nil {
		return nil, err
	}
	return command.ParsePeers(text), nil
}

// judge takes an answer and returns the connections that are proved to be of no use.
func (q *inquiry) judge(batch []*wire.Conn, by *instance, listed map[int64]command.Peer, now int64) (disowned []*wire.Conn) {
	there, ours := make([]bool, len(batch)), make([]bool, len(batch))
	for i, c := range batch {
		var peer command.Peer
		if peer, there[i] = listed[c.ID()]; there[i] {
			ours[i] = isOf(c, peer)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, c := range batch {
		st := q.standingLocked(c)
		st.asked = now
		switch {
		case ours[i]:
			c.IsKnownAs(listed[c.ID()])
			st.vouched, st.missed, st.barren = by, 0, 0
		case st.vouched == nil, !q.succeededLocked(st.vouched, by) && (there[i] || !st.vouched.is(by)):
			st.missed = 0 // that is another server, or another client of it
			if st.barren++; st.barren >= barrenAnswers {
				st.barren, st.mute = 0, now+int64(askMute)
			}
		case st.missed == 0 || st.mark != c.WaitsSince():
			st.missed, st.mark = now, c.WaitsSince()
			q.askAt.Store(min(q.askAt.Load(), now+int64(askAgain)))
		case now-st.missed >= int64(certainAfter) && st.mark != 0:
			disowned = append(disowned, c)
		}
	}
	if by.run != "" {
		if len(q.answeredLast) >= manyServers {
			clear(q.answeredLast)
		}
		q.answeredLast[by.run] = now
	}
	return disowned
}

// isOf reports whether what a server says of an id is about the connection. One that has
// not asked its own server may be known by the address that it comes from.
func isOf(c *wire.Conn, peer command.Peer) bool {
	if self := c.Self(); self != nil {
		return self.Is(peer)
	}
	return c.ComesFrom(peer)
}

// succeededLocked reports whether a server has taken the place of the one that vouched: it
// is reached at the same address, and was started after that has last answered.
func (q *inquiry) succeededLocked(vouched, by *instance) bool {
	last, ok := q.answeredLast[vouched.run]
	return ok && vouched.run != "" && by.run != "" && vouched.run != by.run &&
		vouched.laddr == by.laddr && vouched.host == by.host && by.started > last
}

// Unblock has the server end what connections wait for, and waits for that, for d at most.
// One of which nothing is settled then must not be used any more: what it waits for next
// might be ended instead.
func (q *inquiry) Unblock(d time.Duration, conns ...*wire.Conn) (settled, freed []bool) {
	settled, freed = make([]bool, len(conns)), make([]bool, len(conns))
	now := q.link.clock.Read()
	if !q.Willing(now) || now < q.barredUntil.Load() {
		return settled, freed
	}
	all := make([]*release, len(conns))
	q.mu.Lock()
	for i, c := range conns {
		all[i] = &release{conn: c, done: make(chan struct{})}
	}
	q.releases = append(q.releases, all...)
	start := !q.unblocking
	q.unblocking = true
	q.mu.Unlock()
	if start {
		q.link.spawn(func() { q.releaseAll(d) })
	}
	ctx, cancel := context.WithTimeout(q.link.ctx, d)
	defer cancel()
	for i, r := range all {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
		if freed[i] = true; isClosed(r.done) { // else it may be told yet, or be about to end
			settled[i], freed[i] = r.settled, r.freed
		}
	}
	return settled, freed
}

// releaseAll unblocks what there is to unblock, as many at a time as have come together.
func (q *inquiry) releaseAll(d time.Duration) {
	for {
		q.mu.Lock()
		batch := q.releases
		q.releases = nil
		if len(batch) == 0 {
			q.unblocking = false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		q.release(batch, d)
		for _, r := range batch {
			close(r.done)
		}
	}
}

// release unblocks those connections that the server lists as blocked, which it does on
// the connection on which it is told to unblock them: so it can be nobody else.
func (q *inquiry) release(batch []*release, d time.Duration) {
	ctx, cancel := context.WithTimeout(q.link.ctx, d)
	defer cancel()
	ids := make([]int64, len(batch))
	for i, r := range batch {
		ids[i] = r.conn.ID()
	}
	err := q.via(ctx, func(rdb *redis.Client) error {
		cn := rdb.Conn()
		defer cn.Close()
		listed, err := list(ctx, cn, ids)
		if err != nil {
			return err
		}
		pipe := cn.Pipeline()
		told := make(map[*release]*redis.IntCmd)
		for _, r := range batch {
			switch peer, ok := listed[r.conn.ID()]; {
			case !ok || !isOf(r.conn, peer): // it is not for this server to say
			case peer.Blocked:
				told[r] = pipe.ClientUnblock(ctx, peer.ID)
			default:
				r.settled = true // the reply is on its way
			}
		}
		if len(told) == 0 {
			return nil
		}
		_, err = pipe.Exec(ctx)
		for r, cmd := range told {
			r.settled = cmd.Err() == nil || isReply(cmd.Err())
			r.freed = !r.settled || cmd.Err() == nil && cmd.Val() == 1
		}
		return err
	})
	if err != nil && isReply(err) {
		q.barredUntil.Store(q.link.clock.Read() + int64(askMute))
	}
}
