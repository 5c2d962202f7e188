package compat

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
)

// blocked finds a client that waits, in what CLIENT LIST returns.
var blocked = regexp.MustCompile(`(?m) flags=\S*b\S* .*cmd=xreadgroup`)

// stream is a topic of watermill, with a publisher and a subscriber, and what went
// through them.
type stream struct {
	publisher *redisstream.Publisher
	topic     string
	number    atomic.Int64

	mu        sync.Mutex
	published map[string]bool // acknowledged
	got       map[string]bool
	changed   chan struct{} // has room for one; told when got changed
}

func newStream(t *testing.T, topic string, publisher, subscriber redis.UniversalClient) *stream {
	t.Helper()
	s := &stream{topic: topic, published: make(map[string]bool), got: make(map[string]bool), changed: make(chan struct{}, 1)}
	var err error
	s.publisher, err = redisstream.NewPublisher(redisstream.PublisherConfig{Client: publisher}, watermill.NopLogger{})
	require.NoError(t, err)
	reader, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
		Client: subscriber, ConsumerGroup: "group", OldestId: "0",
		MaxIdleTime: time.Second, ClaimInterval: time.Second, // of what nobody has acknowledged
	}, watermill.NopLogger{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	messages, err := reader.Subscribe(ctx, topic)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for m := range messages {
			s.mu.Lock()
			s.got[string(m.Payload)] = true
			s.mu.Unlock()
			m.Ack()
			select {
			case s.changed <- struct{}{}:
			default:
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = reader.Close() // with its client
		_ = s.publisher.Close()
		wg.Wait()
	})
	return s
}

func (s *stream) publish(ctx context.Context) error {
	id := fmt.Sprint(s.number.Add(1))
	m := message.NewMessage(watermill.NewUUID(), []byte(id))
	m.SetContext(ctx)
	if err := s.publisher.Publish(s.topic, m); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.published[id] = true
	return nil
}

func (s *stream) missing() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.published {
		if !s.got[id] {
			n++
		}
	}
	return n
}

// TestWatermill: every message that was acknowledged is delivered, with a publisher and a
// subscriber that live through the restart.
func TestWatermill(t *testing.T) {
	server := startServer(t)
	goRedis, patient := &rider{name: "go-redis", sits: true}, &rider{name: "redial"}
	opt := &redis.Options{Addr: server.Addr()}
	streams := map[*rider]*stream{
		goRedis: newStream(t, "go-redis", redis.NewClient(opt), redis.NewClient(opt)),
		patient: newStream(t, "redial", redial.NewClient(opt, redial.WithRetry(repeating)), redial.NewClient(opt)),
	}
	ride(t, server, func(ctx context.Context, r *rider) error { return streams[r].publish(ctx) }, goRedis, patient)

	unharmed(t, patient)
	s := streams[patient]
	timeout := time.After(10 * time.Second)
	for late := false; s.missing() > 0 && !late; {
		select {
		case <-s.changed:
		case <-timeout:
			late = true
		}
	}
	assert.Zero(t, s.missing(), "messages were acknowledged and not delivered")
	t.Logf("%d messages acknowledged with redial", len(s.published))
}

// TestWatermill_BlockedReadEnds: a subscriber blocks without an end until there is a
// message. With redial the end of its context ends that, so that Close returns.
func TestWatermill_BlockedReadEnds(t *testing.T) {
	server := startServer(t)
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	subscriber, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: rdb, ConsumerGroup: "group"}, watermill.NopLogger{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	messages, err := subscriber.Subscribe(ctx, "topic")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		list, _ := server.Do("CLIENT", "LIST", "TYPE", "normal").(string)
		return blocked.MatchString(list)
	}, 5*time.Second, 10*time.Millisecond)
	cancel()
	began := time.Now()
	require.NoError(t, subscriber.Close())
	assert.Less(t, time.Since(began), time.Second)
	_, open := <-messages
	assert.False(t, open)
	assert.Equal(t, redial.StateClosed, rdb.State(), "it closes the client that it was given")
}
