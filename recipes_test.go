package redial_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"

	"github.com/redial-go/redial"
)

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
