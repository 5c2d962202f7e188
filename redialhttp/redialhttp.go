// Package redialhttp shows over HTTP how a client is: to machines by [Handler], which
// answers in JSON and fits health checks, and to people by [Page].
//
//	mux.Handle("GET /redis", redialhttp.Handler(rdb))
//	mux.Handle("GET /debug/redis", redialhttp.Page(rdb))
//
// Both read a snapshot that the client has at hand: they never wait for the server, and
// no request costs I/O. What they show are states, times, counters, addresses and, on the
// page, the text of the last transport error; no key, argument or password. Addresses are
// nothing for the public: serve them where only your own people and probes can ask.
//
// # Which probe asks what
//
//   - Liveness must not depend on Redis: a restart of the program does not mend the
//     server. Do not give it a handler of this package.
//   - Readiness on a server that all replicas of a program share takes all of them out at
//     once. Where Redis is a cache, or requests can be answered without it, use [Handler] as
//     it is: it tells, with status 200. Where nothing works without it, [Required] and
//     [After] have it answer 503 once an outage has lasted longer than what commands ride
//     out. One that begins with the program counts from there, so let a program be ready for
//     longer than that before it replaces others.
//   - Start-up asks whether the process is up, as liveness does: one that waits for the
//     server has programs restarted that start during an outage.
//   - A worker that takes its jobs from Redis needs no readiness: nobody sends it requests,
//     and its loop goes on when the server is back.
package redialhttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redial-go/redial"
)

// Source is what is asked: every client of package redial, and a [redial.Supervisor]. A
// closed one shows its last values.
type Source interface {
	// Stats returns a snapshot without waiting.
	Stats() redial.Stats
	// Outages returns the last outages without waiting.
	Outages() []redial.Outage
}

// Option changes how [Handler] and [Page] answer.
type Option func(*config)

type config struct {
	required bool
	after    time.Duration
	title    string
	reload   time.Duration
}

// Required has [Handler] answer 503 while the client is down. Without it the status is
// always 200, whatever the body says. [Page] ignores it.
func Required() Option { return func(c *config) { c.required = true } }

// After has [Handler], with [Required], answer 503 only once the client has been down for
// longer than d, so that outages which commands ride out take no program out of service;
// the grace and the period of a probe are a good choice. A closed client is answered with
// 503 at once. The default, and what d <= 0 means, is at once.
func After(d time.Duration) Option { return func(c *config) { c.after = d } }

// Title sets the title of [Page], overriding "Redis". "" leaves the default.
func Title(title string) Option {
	return func(c *config) {
		if title != "" {
			c.title = title
		}
	}
}

// Reload sets how often [Page] reloads itself, in whole seconds, overriding 5s. d <= 0
// means never.
func Reload(d time.Duration) Option { return func(c *config) { c.reload = d } }

func configOf(opts []Option) *config {
	c := &config{title: "Redis", reload: defaultReload}
	for _, o := range opts {
		if o != nil {
			o(c)
		}
	}
	return c
}

const defaultReload = 5 * time.Second

// Status is how a client is, in one word.
type Status string

const (
	// Up means that the client is Connected, and so are all its nodes that were used.
	Up Status = "up"
	// Degraded means that the client is Connected and some of its nodes are not.
	Degraded Status = "degraded"
	// Down means that the client is not Connected.
	Down Status = "down"
)

// StatusOf returns the status that a snapshot shows.
func StatusOf(s redial.Stats) Status {
	if s.State != redial.StateConnected {
		return Down
	}
	for _, n := range s.Nodes {
		if n.State == redial.StateReconnecting || n.State == redial.StateConnecting && n.LastError != "" {
			return Degraded
		}
	}
	return Up
}

// Health is the body of what [Handler] answers, as JSON.
type Health struct {
	// Status is up, degraded or down.
	Status Status `json:"status"`
	// State, Since and Cause are those of the client as a whole, see redial.Stats.
	State redial.State `json:"state"`
	Since time.Time    `json:"since"`
	Cause redial.Cause `json:"cause"`
	// Outages counts the outages since the client was built.
	Outages uint64 `json:"outages"`
	// Nodes are those of a client of several.
	Nodes []Node `json:"nodes,omitempty"`
}

// Node is how a node of a client of several is.
type Node struct {
	Addr  string       `json:"addr"`
	State redial.State `json:"state"`
	Since time.Time    `json:"since"`
	Cause redial.Cause `json:"cause"`
}

// Handler returns a handler that answers GET and HEAD with a [Health]. The status is 200,
// or 503 when the client is down and that was asked for, see [Required] and [After]. It is
// 500, with an error in words, when there is no client to ask. Nothing is to be cached.
func Handler(s Source, opts ...Option) http.Handler {
	c := configOf(opts)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowed(w, r) {
			return
		}
		stats, _, err := ask(s)
		code, body := http.StatusOK, any(healthOf(stats))
		switch {
		case err != nil:
			code, body = http.StatusInternalServerError, map[string]string{"error": err.Error()}
		case c.fails(stats):
			code = http.StatusServiceUnavailable
		}
		text, err := json.Marshal(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, r, code, "application/json", append(text, '\n'))
	})
}

// fails reports whether the program is not to be used as it is.
func (c *config) fails(s redial.Stats) bool {
	return c.required && StatusOf(s) == Down && (s.State == redial.StateClosed || time.Since(s.Since) >= c.after)
}

func healthOf(s redial.Stats) Health {
	h := Health{Status: StatusOf(s), State: s.State, Since: s.Since, Cause: s.Cause, Outages: s.Outages}
	for _, n := range s.Nodes {
		h.Nodes = append(h.Nodes, Node{n.Addr, n.State, n.Since, n.Cause})
	}
	return h
}

// errNoClient is shown where there is no client: nil, or a pointer that is.
var errNoClient = errors.New("redialhttp: there is no client to ask")

// ask returns what the client says of itself.
func ask(s Source) (stats redial.Stats, outages []redial.Outage, err error) {
	if s == nil {
		return stats, nil, errNoClient
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errNoClient, r)
		}
	}()
	return s.Stats(), s.Outages(), nil
}

// allowed answers what is neither GET nor HEAD. No answer is to be kept, whatever it is.
func allowed(w http.ResponseWriter, r *http.Request) bool {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
	return false
}

func answer(w http.ResponseWriter, r *http.Request, code int, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // fails only when whoever asked is gone
	}
}
