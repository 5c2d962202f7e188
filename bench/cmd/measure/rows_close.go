package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/bench/internal/testbed"
)

// The experiments about what a client leaves behind and what waiting costs.
func closeRows() []experiment {
	columns := []column{
		{name: "Close took", unit: "ms", how: worst, cmp: atMost, limit: 100},
		{name: "all gone after", unit: "ms", how: worst, cmp: atMost, limit: 100},
	}
	var rows []experiment
	for i, state := range closeStates() {
		rows = append(rows, experiment{
			lines: []line{{fmt.Sprintf("14%c", 'a'+i), "Close " + state.what, columns}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(5, 2), func(k client.Kind, s *sample) error { return closed(k, s, state) })
			},
		})
	}
	return append(rows, experiment{
		lines: []line{{"15", "10,000 callers waiting for the link, against as many blocked on a channel", []column{
			{name: "heap per caller", unit: "B", cmp: atMost, limit: 1024},
			{name: "stack per caller", unit: "B"},
		}}},
		clients: []string{client.RedialName},
		run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), waiters) },
	})
}

// closeState is a state in which a client is closed.
type closeState struct {
	what    string
	callers int
	stage   func(s *sample) (stage, error)
}

// stage is what brings a client into a state.
type stage struct {
	set     client.Settings             // to open the client with
	settle  func(c client.Client) error // returns once the state is reached
	release func()                      // takes everything down, more than once if need be
}

func closeStates() []closeState {
	return []closeState{
		{"while connected and idle", 0, onServer(func(_ *redialtest.Server, c client.Client) error { return warm(c, 20) })},
		{"while connected under load", load.Workers, onServer(func(_ *redialtest.Server, c client.Client) error { return pause(c) })},
		{"while connecting to a refused port", load.Workers, onNobody},
		{"while connecting to a peer that never answers", load.Workers, onMute(nil)},
		{"while a TLS handshake is never answered", load.Workers, onMute(&tls.Config{InsecureSkipVerify: true})},
		{"while reconnecting, 1,000 callers waiting", 1000, onServer(reconnecting((*redialtest.Server).Kill, 1000))},
		{"while the server is frozen, 50 callers blocked", load.Workers, onServer(func(server *redialtest.Server, c client.Client) error {
			if err := pause(c); err != nil {
				return err
			}
			server.Freeze()
			return pause(c)
		})},
		{"while reconnecting to a frozen server, 50 callers waiting", load.Workers,
			onServer(reconnecting((*redialtest.Server).Freeze, load.Workers))},
	}
}

// pause lets callers run into whatever is prepared for them.
func pause(client.Client) error {
	time.Sleep(300 * time.Millisecond)
	return nil
}

// onServer is a stage with a running server.
func onServer(settle func(*redialtest.Server, client.Client) error) func(*sample) (stage, error) {
	return func(s *sample) (stage, error) {
		server, _, stop, err := launch(s, false)
		if err != nil {
			return stage{}, err
		}
		return stage{
			set:     client.Settings{Addr: server.Addr()},
			settle:  func(c client.Client) error { return settle(server, c) },
			release: stop,
		}, nil
	}
}

// onNobody is a stage with a port that refuses.
func onNobody(s *sample) (stage, error) {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return stage{}, err
	}
	server.Kill()
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	return stage{set: client.Settings{Addr: server.Addr()}, settle: pause, release: stop}, nil
}

// onMute is a stage with a port on which the kernel accepts and nobody reads.
func onMute(conf *tls.Config) func(*sample) (stage, error) {
	return func(*sample) (stage, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return stage{}, err
		}
		return stage{
			set:     client.Settings{Addr: ln.Addr().String(), TLS: conf},
			settle:  pause,
			release: func() { _ = ln.Close() },
		}, nil
	}
}

// reconnecting takes the server away and waits until callers wait for it.
func reconnecting(take func(*redialtest.Server), waiting int) func(*redialtest.Server, client.Client) error {
	return func(server *redialtest.Server, c client.Client) error {
		if err := pause(c); err != nil {
			return err
		}
		take(server)
		sup := client.SupervisorOf(c)
		if sup == nil {
			return pause(c)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := sup.WaitForState(ctx, redial.StateReconnecting); err != nil {
			return err
		}
		for sup.Stats().Waiting < waiting {
			if ctx.Err() != nil {
				return fmt.Errorf("%d callers wait, not %d", sup.Stats().Waiting, waiting)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	}
}

// closed closes a client in some state and waits until nothing of it is left.
func closed(k client.Kind, s *sample, state closeState) error {
	on, err := state.stage(s)
	if err != nil {
		return err
	}
	defer on.release()
	goroutinesBefore := clientGoroutines()
	socketsBefore, err := testbed.Sockets()
	if err != nil {
		return err
	}
	c, err := k.Open(on.set)
	if err != nil {
		return err
	}
	var callers sync.WaitGroup
	quit := make(chan struct{})
	for w := range state.callers {
		callers.Go(func() { callUntilClosed(c, w, quit) })
	}
	if err := on.settle(c); err != nil {
		s.expect(false, "not in the wanted state: %v", err)
	}
	began := time.Now()
	err = c.Close()
	took := time.Since(began)
	s.expect(err == nil, "Close: %v", err)
	close(quit)
	s.set("Close took", stats.Ms(took))

	gone, left, open := stats.Never, 0, 0
	for giveUp := time.Now().Add(5 * time.Second); time.Now().Before(giveUp); time.Sleep(2 * time.Millisecond) {
		left = clientGoroutines() - goroutinesBefore
		if open, err = testbed.Sockets(); err != nil {
			return err
		}
		if left <= 0 && open <= socketsBefore {
			gone = time.Since(began) - took
			break
		}
	}
	s.set("all gone after", stats.Ms(gone))
	if gone == stats.Never {
		s.note("%d goroutines and %d sockets left after 5 s", left, open-socketsBefore)
		on.release() // lets them go
	}
	callers.Wait()
	return nil
}

// callUntilClosed issues commands until the client or the experiment ends.
func callUntilClosed(c client.Client, worker int, quit chan struct{}) {
	for i := worker; ; i++ {
		r := load.Issue(context.Background(), c, load.Mixed(i), worker)
		if errors.Is(r.Err, redial.ErrClosed) {
			return
		}
		select {
		case <-quit:
			return
		case <-time.After(load.Every):
		}
	}
}

// waiters measures the memory of callers that wait at the gate.
func waiters(k client.Kind, s *sample) error {
	const count = redial.DefaultMaxWaiting
	server, err := redialtest.LaunchServer()
	if err != nil {
		return err
	}
	defer func() { s.expect(server.Close() == nil, "server did not close") }()
	server.Kill()
	c, err := k.Open(client.Settings{Addr: server.Addr(), Options: []redial.Option{redial.WithGrace(time.Hour)}})
	if err != nil {
		return err
	}
	sup := client.SupervisorOf(c)

	blockedCost(count) // the runtime keeps the descriptors of past goroutines
	plainHeap, plainStack := blockedCost(count)
	heapBefore, stackBefore := memory()
	var callers sync.WaitGroup
	for range count {
		callers.Go(func() { _ = c.Get(context.Background(), "key") })
	}
	for giveUp := time.Now().Add(10 * time.Second); sup.Stats().Waiting < count && time.Now().Before(giveUp); {
		time.Sleep(10 * time.Millisecond)
	}
	s.expect(sup.Stats().Waiting == count, "%d callers wait, not %d", sup.Stats().Waiting, count)
	heapAfter, stackAfter := memory()
	s.set("heap per caller", (heapAfter-heapBefore-plainHeap)/count)
	s.set("stack per caller", (stackAfter-stackBefore-plainStack)/count)
	s.note("on a channel: heap %.0f B, stack %.0f B", plainHeap/count, plainStack/count)
	err = c.Close()
	callers.Wait()
	return err
}

// blockedCost measures n goroutines that are blocked on a channel.
func blockedCost(n int) (heap, stack float64) {
	heap0, stack0 := memory()
	block := make(chan struct{})
	var blocked sync.WaitGroup
	for range n {
		blocked.Go(func() { <-block })
	}
	heap1, stack1 := memory()
	close(block)
	blocked.Wait()
	return heap1 - heap0, stack1 - stack0
}

// memory returns the live heap and the stacks in use.
func memory() (heap, stack float64) {
	time.Sleep(50 * time.Millisecond) // let goroutines come to rest
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc), float64(m.StackInuse)
}
