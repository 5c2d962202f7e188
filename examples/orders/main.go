// Orders is a small shop whose books must be right, and shows what it takes.
//
//	go run ./examples/orders
//
// starts a server of its own, for which it needs redis-server in PATH, or uses the one
// that REDIS_ADDR names. Workers place orders, each one a transaction that takes an item
// from the stock and writes the order down, while replies are cut and the server is killed
// with kill -9. Who gets no reply tries again, as people do. The first shop does that as it
// is, and sells things twice; the second gives each order an id, with redial.Once. At the
// end you see the books of both. When those of the second are wrong the exit status is 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/narrate"
	"github.com/redial-go/redial/redialtest"
)

const (
	workers = 8
	cuts    = 5                      // replies at a time
	every   = 100 * time.Millisecond // cuts
	limit   = time.Minute            // for everything
	records = time.Minute            // how long ids are remembered; the shop is closed before
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt kills
	if err := run(ctx, os.Stdout, os.Getenv("REDIS_ADDR"), 2*time.Second); err != nil {
		log.Fatal("orders: ", err)
	}
}

// run opens both shops, one after the other, each for a while, and prints their books. It
// returns an error when those of the shop with ids are wrong.
func run(ctx context.Context, w io.Writer, addr string, open time.Duration) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("no end of it in "+limit.String()))
	defer cancel()
	var server *redialtest.Server // nil: it is not ours to kill
	if addr == "" {
		if server, err = redialtest.LaunchServer("--appendonly", "yes", "--appendfsync", "always"); err != nil {
			return narrate.Explain(err, "./examples/orders")
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		addr = server.Addr()
	}
	proxy, err := redialtest.StartProxy("127.0.0.1:0", addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	proxy.Match("exec")

	for _, once := range []bool{false, true} {
		s := &shop{name: fmt.Sprintf("redial-orders:%d:%t", time.Now().UnixNano(), once), once: once}
		s.rdb = redial.NewClient(&redis.Options{Addr: proxy.Addr(), PoolSize: workers}, redial.WithOnceTTL(records))
		books, tradeErr := s.trade(ctx, proxy, server, open)
		if err := errors.Join(tradeErr, s.rdb.Close()); err != nil {
			return err
		}
		fmt.Fprintf(w, "%-12s %s\n", s.title(), books)
		if once && !books.right() {
			return errors.New("the books are wrong")
		}
	}
	return nil
}

// shop sells items by orders.
type shop struct {
	rdb  *redial.Client
	name string
	once bool

	mu     sync.Mutex
	placed map[string]bool // guarded by mu; orders that were confirmed
	tries  int             // guarded by mu; after the first of an order
}

func (s *shop) title() string {
	if s.once {
		return "with ids"
	}
	return "without ids"
}

func (s *shop) stock() string  { return s.name + ":stock" }
func (s *shop) ledger() string { return s.name + ":ledger" }

// place places an order and returns when it is confirmed, or ctx has ended.
func (s *shop) place(ctx context.Context, order string) error {
	if s.once {
		ctx = redial.Once(ctx, s.name+":"+order)
	}
	for {
		_, err := s.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
			tx.Decr(ctx, s.stock())
			tx.RPush(ctx, s.ledger(), order)
			return nil
		})
		s.mu.Lock()
		if err == nil {
			s.placed[order] = true
		} else {
			s.tries++
		}
		s.mu.Unlock()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errors.Join(err, context.Cause(ctx))
		case !errors.Is(err, redial.ErrOutcomeUnknown) && !errors.Is(err, redial.ErrUnavailable):
			return err
		}
		narrate.Pause(ctx, 10*time.Millisecond)
	}
}

// trade has workers place orders while things go wrong, and returns the books.
func (s *shop) trade(ctx context.Context, proxy *redialtest.Proxy, server *redialtest.Server, open time.Duration) (books, error) {
	s.placed = make(map[string]bool)
	day, closes := context.WithTimeout(ctx, open)
	defer closes()
	var working sync.WaitGroup
	failed := make([]error, workers)
	for n := range workers {
		working.Go(func() {
			for i := 0; day.Err() == nil && failed[n] == nil; i++ {
				failed[n] = s.place(ctx, fmt.Sprintf("%d-%d", n, i))
				narrate.Pause(day, 2*time.Millisecond)
			}
		})
	}
	working.Go(func() {
		for narrate.Pause(day, every) {
			proxy.CutAfterRequest(cuts)
		}
		proxy.CutAfterRequest(0)
	})
	if server != nil && narrate.Pause(day, open/2) {
		server.Kill()
		narrate.Pause(ctx, open/10)
		server.Start()
	}
	working.Wait()
	if err := errors.Join(failed...); err != nil {
		return books{}, err
	}
	return s.audit(ctx)
}

// books are what is left of a day.
type books struct {
	placed, tries           int
	doubled, missing, stock int // stock: by how much it is wrong
}

func (b books) right() bool { return b.doubled == 0 && b.missing == 0 && b.stock == 0 }

func (b books) String() string {
	return fmt.Sprintf("%5d orders placed, %4d tries again   %4d doubled   %4d missing   the stock is wrong by %d",
		b.placed, b.tries, b.doubled, b.missing, b.stock)
}

// audit compares what the server has with what was confirmed, and clears it away.
func (s *shop) audit(ctx context.Context) (books, error) {
	ctx = redial.WaitFor(ctx, limit)
	ledger, err := s.rdb.LRange(ctx, s.ledger(), 0, -1).Result()
	if err != nil {
		return books{}, err
	}
	stock, err := s.rdb.Get(ctx, s.stock()).Int()
	if err != nil {
		return books{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := books{placed: len(s.placed), tries: s.tries, stock: len(s.placed) + stock}
	times := make(map[string]int)
	for _, order := range ledger {
		times[order]++
	}
	for order := range s.placed {
		switch n := times[order]; {
		case n == 0:
			b.missing++
		case n > 1:
			b.doubled += n - 1
		}
	}
	return b, s.rdb.Del(redial.Idempotent(ctx), s.ledger(), s.stock()).Err()
}
