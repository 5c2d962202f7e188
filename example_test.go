package redial_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"

	"github.com/redial-go/redial"
)

// Samples of the documents are taken from this file; tests/house compares.

// startServer starts an embedded server, so that the examples run anywhere.
func startServer() *miniredis.Miniredis {
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	return server
}

// pay counts an order once, however often it is called for it.
func pay(ctx context.Context, rdb *redial.Client, order string) (int64, error) {
	return rdb.Incr(redial.Once(ctx, "order-"+order), "orders").Result()
}

func ExampleOnce() {
	server := startServer()
	defer server.Close()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	for range 3 { // the caller has lost the reply, or was restarted
		n, err := pay(context.Background(), rdb, "4711")
		fmt.Println(n, err)
	}
	_, err := rdb.Decr(redial.Once(context.Background(), "order-4711"), "orders").Result()
	fmt.Println(errors.Is(err, redial.ErrOnceMismatch))
	// Output:
	// 1 <nil>
	// 1 <nil>
	// 1 <nil>
	// true
}

func ExampleNewClient() {
	server := startServer()
	defer server.Close()
	ctx, addr := context.Background(), server.Addr()

	rdb := redial.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()

	if err := rdb.Set(ctx, "greeting", "hello", 0).Err(); err != nil {
		log.Fatal(err)
	}
	greeting, err := rdb.Get(ctx, "greeting").Result()
	fmt.Println(greeting, err, rdb.State())
	// Output: hello <nil> connected
}

// Functions that take a *redis.Client or a go-redis interface need no change.
func ExampleNewClient_dropIn() {
	server := startServer()
	defer server.Close()
	ctx := context.Background()
	countInterface := func(rdb redis.UniversalClient) (int64, error) { return rdb.Incr(ctx, "hits").Result() }
	countPointer := func(rdb *redis.Client) (int64, error) { return rdb.Incr(ctx, "hits").Result() }

	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	fmt.Println(countInterface(rdb))
	fmt.Println(countPointer(rdb.Client))
	// Output:
	// 1 <nil>
	// 2 <nil>
}

func ExampleNewClient_options() {
	server := startServer()
	defer server.Close()
	addr, logger := server.Addr(), slog.New(slog.DiscardHandler)

	rdb := redial.NewClient(&redis.Options{Addr: addr},
		redial.WithHeartbeat(500*time.Millisecond, 500*time.Millisecond),
		redial.WithGrace(2*time.Second),
		redial.WithLogger(logger),
	)
	defer rdb.Close()
	fmt.Println(rdb.Ping(context.Background()))
	// Output: ping: PONG
}

// Connect waits for the server and reports what is wrong as an error.
func ExampleConnect() {
	server := startServer()
	defer server.Close()
	server.RequireAuth("s3cret")
	addr := server.Addr()

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	rdb, err := redial.Connect(ctx, &redis.Options{Addr: addr, Password: "wrong"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rdb.Close()
	// Output: WRONGPASS invalid username-password pair
}

func ExampleSafeToRetry() {
	server := startServer()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithGrace(0))
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	server.Close()

	n, err := rdb.Incr(ctx, "orders").Result()
	switch {
	case err == nil:
		fmt.Println("order", n)
	case errors.Is(err, redial.ErrOutcomeUnknown):
		fmt.Println("it may have run once: look before you repeat it")
	case redial.SafeToRetry(err):
		fmt.Println("nothing ran: try again later, or mend what the server refuses")
	default:
		fmt.Println("the server says", err) // redis.Nil, too
	}
	// Output: nothing ran: try again later, or mend what the server refuses
}

// An Error says which command failed where, and in which state of the link.
func ExampleError() {
	server := startServer()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithGrace(0))
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	server.Close()

	err := rdb.Incr(ctx, "orders").Err()
	if e, ok := errors.AsType[*redial.Error](err); ok {
		fmt.Println(e.Cmd, e.State, redial.IsConnectionError(e.Err))
	}
	// Output: incr reconnecting true
}

func ExampleFailFast() {
	server := startServer()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}) // with a grace of 5s
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	server.Close()

	price, err := rdb.Get(redial.FailFast(ctx), "price").Result()
	if errors.Is(err, redial.ErrUnavailable) {
		price = "unknown today" // a cache is not worth waiting for
	}
	fmt.Println(price)
	// Output: unknown today
}

func ExampleWaitFor() {
	server := startServer()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithGrace(0))
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	server.Close()
	restarted := make(chan error)
	go func() {
		time.Sleep(50 * time.Millisecond)
		restarted <- server.Restart()
	}()

	err := rdb.Set(redial.WaitFor(ctx, time.Minute), "invoice", "paid", 0).Err()
	fmt.Println(err, <-restarted)
	server.Close()
	// Output: <nil> <nil>
}

func ExampleIdempotent() {
	server := startServer()
	defer server.Close()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	// Deleting a session twice is deleting it once.
	err := rdb.Del(redial.Idempotent(ctx), "session").Err()
	fmt.Println(err)
	// Output: <nil>
}

func ExampleWithOnStateChange() {
	server := startServer()
	defer server.Close()
	ctx, addr := context.Background(), server.Addr()

	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithOnStateChange(func(e redial.Event) {
		fmt.Printf("%s -> %s: %s\n", e.From, e.To, e.Reason)
	}))
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}

	server.Close()
	if err := rdb.Ping(redial.FailFast(ctx)).Err(); err == nil {
		log.Fatal("PING succeeded without a server")
	}
	if err := server.Restart(); err != nil {
		log.Fatal(err)
	}
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	if err := rdb.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// connecting -> connected: server answers
	// connected -> reconnecting: connection lost
	// reconnecting -> connected: server answers
	// connected -> closed: closed by the caller
}

func ExampleWithLogger() {
	server := startServer()
	defer server.Close()
	short := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.TimeKey, "addr", "after":
			return slog.Attr{} // they differ from run to run
		}
		return a
	}}
	logger := slog.New(slog.NewTextHandler(os.Stdout, short))

	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithLogger(logger))
	if err := rdb.WaitReady(context.Background()); err != nil {
		log.Fatal(err)
	}
	if err := rdb.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// level=INFO msg="redis connected" from=connecting to=connected reason="server answers" cause=answered attempts=1
	// level=INFO msg="redis closed" from=connected to=closed reason="closed by the caller" cause=closed all.waited=0 all.refused=0 all.unknown=0 all.retries=0
}

// Reconnect every second, without jitter.
func ExampleWithBackoff() {
	server := startServer()
	defer server.Close()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()},
		redial.WithBackoff(func() backoff.BackOff { return backoff.NewConstantBackOff(time.Second) }))
	defer rdb.Close()
	fmt.Println(rdb.Ping(context.Background()))
	// Output: ping: PONG
}

// Allow repeats of SET, which gives the same result twice unless others write
// the key as well.
func ExampleWithRetry() {
	server := startServer()
	defer server.Close()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()},
		redial.WithRetry(func(cmd redis.Cmder) bool {
			return cmd.Name() == "set" || redial.RetryReadOnly(cmd)
		}))
	defer rdb.Close()
	fmt.Println(rdb.Set(context.Background(), "key", "value", 0))
	// Output: set key value: OK
}

// A proxy has a way of its own to say that its server is gone.
func ExampleWithRefusals() {
	server := startServer()
	defer server.Close()
	addr := server.Addr()
	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithRefusals(func(reply error) bool {
		return reply.Error() == "no upstream host"
	}))
	defer rdb.Close()
}

func ExampleSupervisor_WaitReady() {
	server := startServer()
	defer server.Close()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	fmt.Println(rdb.WaitReady(ctx))
	// Output: <nil>
}

func ExampleSupervisor_Check() {
	server := startServer()
	defer server.Close()
	ctx := context.Background()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}

	alive := rdb.Check                        // at once
	ready := rdb.CheckAfter(15 * time.Second) // not for outages that commands ride out
	fmt.Println(alive(ctx), ready(ctx))
	// Output: <nil> <nil>
}

// waits counts how often commands had to wait.
type waits struct{ n atomic.Int64 }

func (w *waits) ObserveWait(context.Context, redial.Wait) { w.n.Add(1) }

func ExampleWithObserver() {
	server := startServer()
	defer server.Close()
	ctx, addr := context.Background(), server.Addr()
	seen := &waits{}
	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithObserver(seen))
	defer rdb.Close()
	if err := rdb.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(rdb.Set(ctx, "greeting", "hello", 0).Err(), seen.n.Load())
	// Output: <nil> 0
}

func ExampleSupervisor_Stats() {
	server := startServer()
	defer server.Close()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	if err := rdb.WaitReady(context.Background()); err != nil {
		log.Fatal(err)
	}
	s := rdb.Stats()
	fmt.Println(s.State, s.Reason, s.Outages, s.Dials)
	// Output: connected server answers 0 1
}

func ExampleClient_Drain() {
	server := startServer()
	defer server.Close()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})

	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := rdb.Drain(end); err != nil {
		log.Print(err) // it says how many commands were cut short
	}
	fmt.Println(rdb.State())
	// Output: closed
}

// Commands follow the master that the sentinels name.
func ExampleNewFailoverClient() {
	rdb := redial.NewFailoverClient(&redis.FailoverOptions{
		MasterName:    "primary",
		SentinelAddrs: []string{"127.0.0.1:26379", "127.0.0.1:26380", "127.0.0.1:26381"},
	})
	defer rdb.Close()
}

// Stats names the nodes that are down.
func ExampleNewClusterClient() {
	rdb := redial.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{"127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"},
	})
	defer rdb.Close()

	for _, node := range rdb.Stats().Nodes {
		if node.State == redial.StateReconnecting {
			fmt.Println(node.Addr, "is down since", node.Since, "because of:", node.Reason)
		}
	}
}

// A client that somebody else has made is put under supervision in place.
func ExampleSupervise() {
	server := startServer()
	defer server.Close()
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()}) // in a framework, perhaps
	defer rdb.Close()

	supervisor, err := redial.Supervise(rdb)
	if err != nil {
		log.Fatal(err)
	}
	defer supervisor.Close()

	fmt.Println(rdb.Set(ctx, "greeting", "hello", 0).Err(), supervisor.State())
	// Output: <nil> connected
}

// A client that serves locks or rate limits alone may repeat everything.
func ExampleWithRetry_locks() {
	server := startServer()
	defer server.Close()
	addr := server.Addr()
	rdb := redial.NewClient(&redis.Options{Addr: addr},
		redial.WithRetry(func(redis.Cmder) bool { return true }),
	)
	defer rdb.Close()
	fmt.Println(rdb.SetNX(context.Background(), "lock", "token", time.Minute))
	// Output: set lock token ex 60 nx: true
}

// An instrument that adds its hooks itself sees each call once, and where it was made.
func ExampleWithInstrument() {
	server := startServer()
	defer server.Close()
	addr := server.Addr()
	redisotel := spans{} // in place of package github.com/redis/go-redis/extra/redisotel/v9

	rdb := redial.NewClient(&redis.Options{Addr: addr},
		redial.WithInstrument(func(rdb redis.UniversalClient) error {
			return redisotel.InstrumentTracing(rdb)
		}),
	)
	defer rdb.Close()
	rdb.Set(context.Background(), "greeting", "hello", 0)
	// Output: span of set, error: <nil>
}

// spans writes what a span would say.
type spans struct{}

func (s spans) InstrumentTracing(rdb redis.UniversalClient) error {
	rdb.AddHook(s)
	return nil
}

func (spans) DialHook(next redis.DialHook) redis.DialHook { return next }

func (spans) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "set" { // and not what sets up connections
			fmt.Printf("span of %s, error: %v\n", cmd.Name(), err)
		}
		return err
	}
}

func (spans) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Recipes that the documents give in full.

// iamTokens hands out tokens that one signature after another has made.
type iamTokens struct {
	user string
	sign func(ctx context.Context) (token string, err error) // of the SDK of AWS
	keep time.Duration                                       // less than the 15 minutes for which a token is good

	mu     sync.Mutex
	token  string    // guarded by mu
	signed time.Time // guarded by mu
}

// Credentials is a CredentialsProviderContext.
func (p *iamTokens) Credentials(ctx context.Context) (username, password string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == "" || time.Since(p.signed) > p.keep {
		token, err := p.sign(ctx)
		if err != nil {
			return "", "", err
		}
		p.token, p.signed = token, time.Now()
	}
	return p.user, p.token, nil
}

// A token of AWS IAM, which is asked for when a connection is made.
func ExampleNewClient_iam() {
	server := startServer()
	defer server.Close()
	server.RequireUserAuth("app", "signed")
	addr := server.Addr()
	sign := func(context.Context) (string, error) { return "signed", nil }

	tokens := &iamTokens{user: "app", sign: sign, keep: 10 * time.Minute}
	rdb := redial.NewClient(&redis.Options{
		Addr:                       addr,
		CredentialsProviderContext: tokens.Credentials,
		ConnMaxLifetime:            11 * time.Hour, // the server ends a connection after 12
		ConnMaxLifetimeJitter:      time.Hour,      // and not all of them at once
	})
	defer rdb.Close()
	fmt.Println(rdb.Ping(context.Background()))
	// Output: ping: PONG
}

// entraTokens tells connections of each new token.
type entraTokens struct {
	mu        sync.Mutex
	current   auth.Credentials                  // guarded by mu
	listeners map[auth.CredentialsListener]bool // guarded by mu
}

// Subscribe is called for each connection that is set up. It must not block: what it
// returns was fetched before.
func (p *entraTokens) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil, nil, errors.New("there is no token yet")
	}
	p.listeners[l] = true
	return p.current, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, l)
		return nil
	}, nil
}

// Renew is called with each new token, before the last one expires.
func (p *entraTokens) Renew(username, token string) {
	renewed := auth.NewBasicCredentials(username, token)
	p.mu.Lock()
	p.current = renewed
	all := slices.Collect(maps.Keys(p.listeners))
	p.mu.Unlock()
	for _, l := range all {
		l.OnNext(renewed)
	}
}

// A token of Microsoft Entra, of which connections are told before the last one expires.
func ExampleNewClient_entra() {
	server := startServer()
	defer server.Close()
	addr, token := server.Addr(), "eyJ0"
	server.RequireUserAuth("object-id", token)

	tokens := &entraTokens{listeners: make(map[auth.CredentialsListener]bool)}
	tokens.Renew("object-id", token)
	rdb := redial.NewClient(&redis.Options{Addr: addr, StreamingCredentialsProvider: tokens})
	defer rdb.Close()
	fmt.Println(rdb.Ping(context.Background()))
	// Output: ping: PONG
}

type fate struct{ err error }

type fateKey struct{}

// fates is a hook that notes the error of a command where its context says.
type fates struct{}

func (fates) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if f, ok := ctx.Value(fateKey{}).(*fate); ok && err != nil {
			f.err = err
		}
		return err
	}
}

func (fates) DialHook(next redis.DialHook) redis.DialHook { return next }

func (fates) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// What has failed is known, although a library shows no more of it than its text.
func ExampleWithOuterHook() {
	server := startServer()
	ctx, addr := context.Background(), server.Addr()
	server.Close()
	enqueue := func(ctx context.Context, rdb redis.UniversalClient) error {
		if err := rdb.LPush(redial.FailFast(ctx), "queue", "task").Err(); err != nil {
			return fmt.Errorf("enqueue: %v", err)
		}
		return nil
	}

	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithOuterHook(fates{}))

	var seen fate
	err := enqueue(context.WithValue(ctx, fateKey{}, &seen), rdb) // of a library that flattens
	fmt.Println(errors.Is(err, redial.ErrUnavailable), redial.SafeToRetry(seen.err))
	defer rdb.Close()
	if err == nil {
		log.Fatal("there is no server")
	}
	// Output: false true
}

func NewRedis(opt *redis.Options) (rdb redis.UniversalClient, cleanup func(), err error) {
	c := redial.NewClient(opt)
	return c, func() {
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Drain(end); err != nil {
			log.Print(err) // it says how many commands were cut short
		}
	}, nil
}

func ExampleClient_Drain_cleanup() {
	server := startServer()
	defer server.Close()
	rdb, cleanup, err := NewRedis(&redis.Options{Addr: server.Addr()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(rdb.Ping(context.Background()))
	cleanup()
	// Output: ping: PONG
}
