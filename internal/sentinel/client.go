package sentinel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// A connection to one sentinel, what is asked on it, and code of the caller that may hang.

// client is a connection to one sentinel, or several.
type client struct {
	*redis.SentinelClient
	of     *Directory
	ctx    context.Context // ends with close
	cancel context.CancelFunc
}

// connect returns a client for a sentinel, nil when the directory is closed. It does no
// I/O.
func (d *Directory) connect(addr string) *client {
	c := &client{of: d}
	c.ctx, c.cancel = context.WithCancel(d.life)
	setUp := d.limits.DialTimeout + d.limits.Timeout // what takes longer, contexts end
	o := &redis.Options{
		Addr: addr, ClientName: d.opt.ClientName,
		Username: d.opt.SentinelUsername, Password: d.opt.SentinelPassword,
		Dialer:      c.dial,
		DialTimeout: setUp, ReadTimeout: setUp, WriteTimeout: setUp, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, PoolSize: d.limits.AtOnce,
		ReadBufferSize: d.limits.Buffer, WriteBufferSize: d.limits.Buffer,
		DisableIdentity: d.opt.DisableIdentity, IdentitySuffix: d.opt.IdentitySuffix,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if d.opt.OnConnect != nil {
		o.OnConnect = c.onConnect
	}
	c.SentinelClient = redis.NewSentinelClient(o)
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.open[c] = struct{}{}
	}
	d.mu.Unlock()
	if closed {
		c.close()
		return nil
	}
	return c
}

// close ends whatever the client is at.
func (c *client) close() {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	c.cancel()
	_ = c.SentinelClient.Close()
}

// dial is the Dialer of the client. It never fails, see wire.Standin. What the dialer of the
// caller takes longer for than it may is closed when it comes.
func (c *client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.of.limits.DialTimeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	var nc net.Conn
	err := c.of.leave(ctx, func() (err error) {
		nc, err = c.of.dialer(ctx, network, addr)
		return err
	}, func() { _ = nc.Close() })
	if err != nil {
		return wire.NewStandin(err, func(e *wire.Error) error { return e.Err }), nil
	}
	sys.Tune(sys.Innermost(nc), c.of.limits.Liveness)
	return nc, nil
}

// onConnect has the caller set up a connection.
func (c *client) onConnect(ctx context.Context, cn *redis.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	return c.of.leave(ctx, func() error { return c.of.opt.OnConnect(ctx, cn) }, func() {})
}

// leave calls f, a function of the caller, and leaves it behind when ctx ends before it
// returns. Then late is called if it succeeds after all.
func (d *Directory) leave(ctx context.Context, f func() error, late func()) error {
	result := make(chan error)
	go func() {
		err := d.contain(f)
		select {
		case result <- err:
		case <-ctx.Done():
			if err == nil {
				late()
			}
		}
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// contain makes an error of a panic: of the caller's code, or of go-redis on what a sentinel
// says.
func (d *Directory) contain(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			d.mishap(r, debug.Stack())
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// errUnknown says that a sentinel does not watch over the master.
var errUnknown = errors.New("sentinel knows no master named")

// isWord reports whether err is what a sentinel says, over a connection that is well.
func isWord(err error) bool {
	var reply redis.Error
	return errors.Is(err, errUnknown) || errors.As(err, &reply)
}

// query asks a sentinel for the master and, if wanted, for its replicas. Where one of these is
// to be dialed, the master need not be known.
func (d *Directory) query(ctx context.Context, c *client, replicas bool) (a answer, err error) {
	a.master, err = d.askMaster(ctx, c)
	if !replicas || err != nil && !(d.opt.ReplicaOnly && isWord(err)) {
		return a, err
	}
	a.unnamed = err
	a.replicas, err = d.askReplicas(ctx, c)
	if d.opt.ReplicaOnly && isWord(err) {
		err = nil // then the master has to do
	}
	if err == nil && len(a.replicas) == 0 {
		err = a.unnamed
	}
	return a, err
}

func (d *Directory) askMaster(ctx context.Context, c *client) (string, error) {
	addr, err := c.GetMasterAddrByName(ctx, d.opt.MasterName).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", fmt.Errorf("%w %q", errUnknown, d.opt.MasterName)
	case err != nil:
		return "", err
	case len(addr) < 2 || slices.Contains(addr[:2], ""):
		return "", errors.New("sentinel does not answer with an address where the master is")
	}
	return net.JoinHostPort(addr[0], addr[1]), nil
}

// askReplicas returns the addresses of the replicas that are up.
func (d *Directory) askReplicas(ctx context.Context, c *client) ([]string, error) {
	list, err := c.Replicas(ctx, d.opt.MasterName).Result()
	if err != nil {
		return nil, err
	}
	var up, cutOff []string
	for _, r := range list {
		switch addr := addrOf(r); {
		case addr == "", isDown(r):
		case hasFlag(r, "disconnected"):
			cutOff = append(cutOff, addr)
		default:
			up = append(up, addr)
		}
	}
	if len(up) == 0 && d.opt.ReplicaOnly && d.opt.UseDisconnectedReplicas {
		return cutOff, nil
	}
	return up, nil
}
