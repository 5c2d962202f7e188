// Package client gives Redis clients of several libraries one face, so that they
// can be put through the same trials.
package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redial-go/redial"
)

// Client is what the trials need of a Redis client. A missing key is no error.
type Client interface {
	Get(ctx context.Context, key string) error
	Set(ctx context.Context, key, value string) error
	Incr(ctx context.Context, key string) (int64, error)
	// GetIncr sends GET read and INCR count as one pipeline and fails unless both
	// are answered.
	GetIncr(ctx context.Context, read, count string) error
	// Busy runs a script that reads and keeps the server busy for d.
	Busy(ctx context.Context, d time.Duration) error
	// Block waits d for an element that never comes, on a connection of its own.
	Block(ctx context.Context, d time.Duration) error
	// Subscribe hands over messages until ctx ends. It resubscribes the way that
	// the library's documentation shows.
	Subscribe(ctx context.Context, topic string, got func(payload string)) error
	Close() error
}

// Settings are the options a trial wants; the rest is left at the defaults of
// each library.
type Settings struct {
	Addr string
	// Sentinel is the address of one that calls the server SentinelMaster; the
	// client asks it for Addr. Empty: none.
	Sentinel string
	// Dials counts the dials, by an own dialer; nil: the library's dialer.
	Dials    *Dials
	TLS      *tls.Config
	PoolSize int           // 0: the library's default
	Timeout  time.Duration // of reads and writes; 0: the library's default
	Options  []redial.Option
}

// busyScript ends when the time of its argument, in microseconds, is over. The number of
// rounds bounds it where TIME stands still within a script.
const busyScript = `local function now() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end
local began, rounds, d = now(), 0, tonumber(ARGV[1])
repeat rounds = rounds + 1 until now() - began >= d or rounds >= 3 * d
return 1`

// SentinelMaster is what sentinels call the server.
const SentinelMaster = "primary"

// Kind is one client library, set up in one way.
type Kind struct {
	// Name is for the command line, Title for people.
	Name, Title string
	// Setup says in one sentence how it is set up.
	Setup string
	// Failover says that it may be made with Settings.Sentinel.
	Failover bool
	Open     func(Settings) (Client, error)
}

// Names of the kinds.
const (
	RedialName  = "redial"
	GoRedisName = "goredis"
	TunedName   = "goredis-tuned"
	RueidisName = "rueidis"
	RedigoName  = "redigo"
)

// The kinds.
var (
	Redial = Kind{RedialName, "redial",
		"`redial.NewClient` with default options.", true, openRedial}
	GoRedis = Kind{GoRedisName, "go-redis",
		"`redis.NewClient` with default options.", true, openGoRedis}
	Tuned = Kind{TunedName, "go-redis, tuned",
		"go-redis as guides to resilience recommend it: " + tunedText + ".", true, openTuned}
	Rueidis = Kind{RueidisName, "rueidis",
		"`rueidis.NewClient` with default options, without client-side caching.", true, openRueidis}
	Redigo = Kind{RedigoName, "redigo",
		"`redis.Pool` of 20 with `Wait`, timeouts of 5 s, a `TestOnBorrow` that sends PING after 1 min without use, " +
			"and a wrapper that tries a command up to 3 times, 50 ms apart.", false, openRedigo}
)

// All returns all kinds, in the order of the report.
func All() []Kind { return []Kind{Redial, GoRedis, Tuned, Rueidis, Redigo} }

// Names returns the names of kinds, separated by commas.
func Names(kinds []Kind) string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.Name)
	}
	return strings.Join(names, ",")
}

// Pick returns those of some kinds that are in a comma-separated list of names, in the order
// of the kinds; all for an empty list.
func Pick(list string, kinds []Kind) (picked []Kind, err error) {
	if list == "" {
		return kinds, nil
	}
	names := strings.Split(list, ",")
	for _, k := range kinds {
		if i := slices.Index(names, k.Name); i >= 0 {
			picked = append(picked, k)
			names = slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("client: unknown client %q, have %s", names[0], Names(kinds))
	}
	return picked, nil
}

// Find returns the kind of that name.
func Find(name string) (Kind, bool) {
	all := All()
	i := slices.IndexFunc(all, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return all[i], true
}

// Stub answers at once without I/O: what remains is the cost of the load.
type Stub struct{}

// Get does nothing.
func (Stub) Get(context.Context, string) error { return nil }

// Set does nothing.
func (Stub) Set(context.Context, string, string) error { return nil }

// Incr does nothing.
func (Stub) Incr(context.Context, string) (int64, error) { return 1, nil }

// GetIncr does nothing.
func (Stub) GetIncr(context.Context, string, string) error { return nil }

// Busy does nothing.
func (Stub) Busy(context.Context, time.Duration) error { return nil }

// Block does nothing.
func (Stub) Block(context.Context, time.Duration) error { return nil }

// Subscribe waits for the end of ctx.
func (Stub) Subscribe(ctx context.Context, _ string, _ func(string)) error {
	<-ctx.Done()
	return nil
}

// Close does nothing.
func (Stub) Close() error { return nil }
