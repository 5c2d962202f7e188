package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
)

// ms converts for a column; never becomes infinity.
func ms(d time.Duration) float64 {
	if d == never {
		return math.Inf(1)
	}
	return float64(d) / float64(time.Millisecond)
}

// pong asks once for a PONG on a connection of its own.
func pong(addr string) error {
	nc, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	if err := nc.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := io.WriteString(nc, "PING\r\n"); err != nil {
		return err
	}
	reply := make([]byte, len("+PONG\r\n"))
	if _, err := io.ReadFull(nc, reply); err != nil {
		return err
	}
	if string(reply) != "+PONG\r\n" {
		return fmt.Errorf("answer to PING: %q", reply)
	}
	return nil
}

// awaitPong tries in a tight loop and returns the moment of the first PONG.
func awaitPong(addr string) (time.Time, error) {
	giveUp := time.Now().Add(10 * time.Second)
	for {
		err := pong(addr)
		now := time.Now()
		if err == nil {
			return now, nil
		}
		if now.After(giveUp) {
			return now, fmt.Errorf("no PONG from %s: %w", addr, err)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// until sleeps up to a point in time.
func until(t time.Time) { time.Sleep(time.Until(t)) }

// warm opens n connections by blocking on all of them at once.
func warm(c client, n int) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = c.block(context.Background(), time.Second) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ledger says how often the INCRs of a load were executed, by the server's count.
type ledger struct {
	twice   int // executed more than once
	lost    int // acknowledged, not executed
	lied    int // executed, though the error says that nothing ran
	unknown int // failed, outcome said to be unknown
	refused int // failed, said not to have run
}

// audit compares the calls with what is on the server. Each INCR had its own key.
func audit(addr string, calls []call) (ledger, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = rdb.Close() }()
	var l ledger
	var incrs []call
	for _, c := range calls {
		if c.op == opIncr {
			incrs = append(incrs, c)
		}
	}
	for len(incrs) > 0 {
		batch := incrs[:min(1000, len(incrs))]
		incrs = incrs[len(batch):]
		keys := make([]string, len(batch))
		for i, c := range batch {
			keys[i] = c.key
		}
		values, err := rdb.MGet(context.Background(), keys...).Result()
		if err != nil {
			return l, err
		}
		for i, c := range batch {
			text, _ := values[i].(string)
			count, _ := strconv.Atoi(text)
			l.enter(c, count)
		}
	}
	return l, nil
}

func (l *ledger) enter(c call, executed int) {
	if executed > 1 {
		l.twice++
	}
	switch {
	case c.err == nil && executed == 0:
		l.lost++
	case errors.Is(c.err, redial.ErrUnavailable):
		l.refused++
		if executed > 0 {
			l.lied++
		}
	case errors.Is(c.err, redial.ErrOutcomeUnknown):
		l.unknown++
	}
}

// eventLog collects the transitions of a redial client.
type eventLog struct {
	mu     sync.Mutex
	events []redial.Event
}

func (e *eventLog) option() redial.Option {
	return redial.WithOnStateChange(func(ev redial.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.events = append(e.events, ev)
	})
}

// first returns when state was first entered after since.
func (e *eventLog) first(state redial.State, since time.Time) (time.Time, bool) {
	for _, ev := range e.after(since) {
		if ev.To == state {
			return ev.At, true
		}
	}
	return time.Time{}, false
}

// after returns the transitions after a point in time.
func (e *eventLog) after(t time.Time) []redial.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var later []redial.Event
	for _, ev := range e.events {
		if ev.At.After(t) {
			later = append(later, ev)
		}
	}
	return later
}

// since renders the transitions after a point in time.
func (e *eventLog) since(t time.Time) string {
	var parts []string
	for _, ev := range e.after(t) {
		parts = append(parts, fmt.Sprintf("%s at %d ms (%s)", ev.To, ev.At.Sub(t).Milliseconds(), ev.Reason))
	}
	if parts == nil {
		return "no transition"
	}
	return strings.Join(parts, ", ")
}

// cpu returns the processor time this process has used.
func cpu() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// sockets counts the open sockets of this process.
func sockets() (int, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n, nil
}

// clientGoroutines counts the goroutines in redial or go-redis, or started there.
func clientGoroutines() int {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	count := 0
	for _, stack := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(stack, "github.com/redis/go-redis/") || strings.Contains(stack, "github.com/redial-go/redial.") {
			count++
		}
	}
	return count
}

// launch starts a server, and a proxy in front of it when wanted.
func launch(s *sample, withProxy bool) (*redialtest.Server, *redialtest.Proxy, func(), error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, nil, nil, err
	}
	stop := func() { s.expect(server.Close() == nil, "server did not close") }
	if !withProxy {
		return server, nil, stop, nil
	}
	proxy, err := redialtest.StartProxy("127.0.0.1:0", server.Addr())
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return server, proxy, func() { _ = proxy.Close(); stop() }, nil
}
