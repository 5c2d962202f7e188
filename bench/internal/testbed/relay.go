package testbed

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Relay forwards connections and can hold back the first bytes of new ones, as a node
// or a sidecar under load does: they are accepted at once and serve late. It may be
// used by several goroutines.
type Relay struct {
	ln     net.Listener
	target string
	hold   atomic.Int64 // nanoseconds
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// StartRelay starts one to target ("host:port") on a free port of 127.0.0.1.
func StartRelay(target string) (*Relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{ln: ln, target: target}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return // closed
			}
			r.wg.Go(func() { r.serve(nc) })
		}
	})
	return r, nil
}

// Addr returns the "host:port" that the relay listens on.
func (r *Relay) Addr() string { return r.ln.Addr().String() }

// Hold makes connections that are accepted from now on serve after d; 0: at once.
func (r *Relay) Hold(d time.Duration) { r.hold.Store(int64(d)) }

// Close ends every connection and returns when all goroutines have ended.
func (r *Relay) Close() error {
	r.cancel()
	err := r.ln.Close()
	r.wg.Wait()
	return err
}

func (r *Relay) serve(from net.Conn) {
	defer func() { _ = from.Close() }()
	timer := time.NewTimer(time.Duration(r.hold.Load()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.ctx.Done():
		return
	}
	to, err := (&net.Dialer{}).DialContext(r.ctx, "tcp", r.target)
	if err != nil {
		return // the client sees its connection closed
	}
	stop := context.AfterFunc(r.ctx, func() { _, _ = from.Close(), to.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _, _ = from.Close(), to.Close() }()
	wg.Go(func() {
		_, _ = io.Copy(from, to) // either end ends both
		_, _ = from.Close(), to.Close()
	})
	_, _ = io.Copy(to, from)
}
