package redial

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// switchboard is what some proxies and load balancers are: it leads each connection to one of
// several servers and, when a server ends one, goes on to take what the client sends.
type switchboard struct {
	ln net.Listener
	wg sync.WaitGroup

	mu   sync.Mutex
	to   func(n int) string // which server the n-th connection leads to; guarded by mu
	made int                // guarded by mu
	open []net.Conn         // guarded by mu
}

func newSwitchboard(t *testing.T, to func(n int) string) *switchboard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &switchboard{ln: ln, to: to}
	f.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			n := f.made
			f.made++
			addr := f.to(n)
			f.mu.Unlock()
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				continue
			}
			f.mu.Lock()
			f.open = append(f.open, client, server)
			f.mu.Unlock()
			f.wg.Go(func() { _, _ = io.Copy(client, server) }) // the end of the server ends nothing else
			f.wg.Go(func() {
				_, err := io.Copy(server, client)
				if err != nil {
					_, _ = io.Copy(io.Discard, client)
				}
				_, _ = client.Close(), server.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		f.mu.Lock()
		for _, nc := range f.open {
			_ = nc.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *switchboard) Addr() string { return f.ln.Addr().String() }

// lead says where connections lead from now on.
func (f *switchboard) lead(to func(n int) string) {
	f.mu.Lock()
	f.to = to
	f.mu.Unlock()
}

// always leads to one server.
func always(s *redialtest.Server) func(int) string { return func(int) string { return s.Addr() } }

// waitingCommands are those that wait until something is there, for ever.
var waitingCommands = map[string]func(ctx context.Context, c *Client) error{
	"blpop":    func(ctx context.Context, c *Client) error { return c.BLPop(ctx, 0, "list").Err() },
	"bzpopmin": func(ctx context.Context, c *Client) error { return c.BZPopMin(ctx, 0, "set").Err() },
	"xread": func(ctx context.Context, c *Client) error {
		return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"stream", "$"}, Block: 0}).Err()
	},
}

// blocked waits until k clients wait for the server in a command of that name.
func blocked(t *testing.T, s *redialtest.Server, name string, k int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return strings.Count(s.Do("CLIENT", "LIST").(string), "cmd="+name) >= k
	}, 5*time.Second, time.Millisecond, name)
}

// A command that waits on a connection that the server does not know any more has an end.
func TestInquiry_Disowned_WaitingCommandEnds(t *testing.T) {
	t.Parallel()
	for name, run := range waitingCommands {
		for _, traffic := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := redialtest.StartServer(t)
				c := NewClient(&redis.Options{Addr: newSwitchboard(t, always(s)).Addr()})
				defer c.Close()
				require.NoError(t, c.WaitReady(t.Context()))
				done := make(chan error, 1)
				go func() { done <- run(context.Background(), c) }()
				blocked(t, s, name, 1)
				time.Sleep(200 * time.Millisecond)
				s.Do("CLIENT", "KILL", "TYPE", "normal")
				began := time.Now()
				limit := time.NewTimer(15 * time.Second)
				defer limit.Stop()
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						if traffic {
							_ = c.Set(t.Context(), "k", "v", 0).Err()
						}
						continue
					case <-limit.C:
						t.Error("it still waits")
					case err := <-done:
						assert.ErrorIs(t, err, ErrOutcomeUnknown)
						assert.ErrorIs(t, err, errDisowned)
						t.Logf("ended after %v: %v", time.Since(began), err)
					}
					return
				}
			})
		}
	}
}
