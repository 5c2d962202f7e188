package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
)

// The experiments beyond the promises: what the idle check costs, and Pub/Sub.
func extraRows() []experiment {
	return []experiment{
		{
			lines: []line{{"16a", "40 connections with one GET every 3 s: latency", []column{
				{name: "p50", unit: "ms"},
				{name: "p99", unit: "ms"},
				{name: "idle checks", how: total},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, 1, b.trickle) },
		},
		{
			lines: []line{{"16b", "subscriber's connection dropped silently: until messages arrive again", []column{
				{name: "back after", unit: "s", cmp: atMost, limit: 10},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), b.subscriberDropped) },
		},
		{
			lines: []line{{"16c", "everything hangs for 6 s, with a subscriber: after healing", []column{
				{name: "back after", unit: "s", cmp: atMost, limit: 2},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), subscriberHung) },
		},
	}
}

// trickle gives each of many connections one GET every 3 s.
func (b *bench) trickle(k client.Kind, s *sample) error {
	const connections, every = 40, 3 * time.Second
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var mu sync.Mutex
	var took []float64
	var checks uint64
	errs := make([]error, connections)
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			c, err := k.Open(client.Settings{Addr: server.Addr(), PoolSize: 1})
			if err != nil {
				errs[i] = err
				return
			}
			time.Sleep(time.Duration(i) * every / connections)
			for round := range b.runs(8, 4) {
				if round > 0 {
					time.Sleep(every)
				}
				r := load.Issue(context.Background(), c, load.Get, i)
				errs[i] = r.Err
				mu.Lock()
				if round > 0 {
					took = append(took, stats.Ms(r.End.Sub(r.Begin)))
				}
				mu.Unlock()
			}
			if sup := client.SupervisorOf(c); sup != nil {
				mu.Lock()
				checks += sup.Stats().IdleChecks
				mu.Unlock()
			}
			if err := c.Close(); err != nil {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		s.expect(err == nil, "%v", err)
	}
	s.set("p50", stats.Quantile(took, 0.5))
	s.set("p99", stats.Quantile(took, 0.99))
	if k.Name == client.RedialName {
		s.set("idle checks", float64(checks))
	}
	s.note("%d GETs", len(took))
	return nil
}

// subscription is a subscriber behind a proxy and a publisher that is not.
type subscription struct {
	proxy    *redialtest.Proxy
	messages <-chan *redis.Message
	close    func()
}

const topic = "news"

func subscribe(k client.Kind, s *sample) (*subscription, error) {
	server, proxy, stop, err := launch(s, true)
	if err != nil {
		return nil, err
	}
	c, err := k.Open(client.Settings{Addr: proxy.Addr()})
	if err != nil {
		stop()
		return nil, err
	}
	pubsub := c.(client.GoRedisClient).Redis.Subscribe(context.Background(), topic)
	publisher := redis.NewClient(&redis.Options{Addr: server.Addr()})
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-ticker.C:
				_ = publisher.Publish(context.Background(), topic, time.Now().UnixNano()).Err()
			case <-quit:
				return
			}
		}
	})
	sub := &subscription{proxy: proxy, messages: pubsub.Channel()}
	sub.close = func() {
		close(quit)
		wg.Wait()
		s.expect(pubsub.Close() == nil, "subscription did not close")
		s.expect(c.Close() == nil, "client did not close")
		_ = publisher.Close()
		stop()
	}
	for range 10 {
		if _, ok := sub.next(time.Now(), 5*time.Second); !ok {
			sub.close()
			return nil, fmt.Errorf("no message through a healthy proxy")
		}
	}
	return sub, nil
}

// next waits for a message published after t.
func (sub *subscription) next(t time.Time, patience time.Duration) (time.Time, bool) {
	timeout := time.After(patience)
	for {
		select {
		case m := <-sub.messages:
			var sent int64
			if _, err := fmt.Sscan(m.Payload, &sent); err == nil && time.Unix(0, sent).After(t) {
				return time.Now(), true
			}
		case <-timeout:
			return time.Time{}, false
		}
	}
}

func (sub *subscription) measure(s *sample, healed time.Time, patience time.Duration) {
	if at, ok := sub.next(healed, patience); ok {
		s.set("back after", at.Sub(healed).Seconds())
		return
	}
	s.set("back after", stats.Ms(stats.Never))
	s.note("no message for %v", patience)
}

func (b *bench) subscriberDropped(k client.Kind, s *sample) error {
	sub, err := subscribe(k, s)
	if err != nil {
		return err
	}
	defer sub.close()
	s.expect(sub.proxy.DropIdle() > 0, "nothing was dropped")
	dropped := time.Now()
	time.Sleep(50 * time.Millisecond) // what was on its way has come
	patience := 40 * time.Second
	if b.quick {
		patience = 15 * time.Second
	}
	sub.measure(s, dropped.Add(50*time.Millisecond), patience)
	return nil
}

func subscriberHung(k client.Kind, s *sample) error {
	sub, err := subscribe(k, s)
	if err != nil {
		return err
	}
	defer sub.close()
	s.expect(sub.proxy.Hang() > 0, "nothing hangs")
	time.Sleep(6 * time.Second)
	sub.proxy.Restore()
	sub.measure(s, time.Now(), 15*time.Second)
	return nil
}
