package redialhttp_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialhttp"
)

// shown is a client in any condition.
type shown struct {
	stats   redial.Stats
	outages []redial.Outage
}

func (s shown) Stats() redial.Stats      { return s.stats }
func (s shown) Outages() []redial.Outage { return s.outages }

var _ = []redialhttp.Source{(*redial.Client)(nil), (*redial.ClusterClient)(nil), (*redial.Ring)(nil), (*redial.Supervisor)(nil), redial.UniversalClient(nil)}

func in(state redial.State, ago time.Duration, nodes ...redial.State) shown {
	s := redial.Stats{State: state, Since: time.Now().Add(-ago), Cause: redial.CauseHeartbeatMissed, Reason: "heartbeat missed", Outages: 3}
	for i, n := range nodes {
		s.Nodes = append(s.Nodes, redial.NodeStats{Addr: "127.0.0.1:" + string(rune('1'+i)), State: n, Since: s.Since, Cause: redial.CauseAnswered})
	}
	return shown{stats: s}
}

func do(t *testing.T, h http.Handler, method string) *http.Response {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

func TestHandler_Status(t *testing.T) {
	const required, after = true, true
	for _, tc := range []struct {
		name            string
		source          shown
		required, after bool
		status          redialhttp.Status
		code            int
	}{
		{"connected", in(redial.StateConnected, time.Hour), required, after, redialhttp.Up, 200},
		{"all nodes", in(redial.StateConnected, time.Hour, redial.StateConnected, redial.StateConnecting), required, after, redialhttp.Up, 200},
		{"a node less", in(redial.StateConnected, time.Hour, redial.StateConnected, redial.StateReconnecting), required, !after, redialhttp.Degraded, 200},
		{"down, a cache", in(redial.StateReconnecting, time.Hour), !required, !after, redialhttp.Down, 200},
		{"down, required", in(redial.StateReconnecting, time.Second), required, !after, redialhttp.Down, 503},
		{"down for a moment", in(redial.StateReconnecting, 8*time.Second), required, after, redialhttp.Down, 200},
		{"down for long", in(redial.StateReconnecting, 12*time.Second), required, after, redialhttp.Down, 503},
		{"down for long, a cache", in(redial.StateReconnecting, 12*time.Second), !required, after, redialhttp.Down, 200},
		{"never up", in(redial.StateConnecting, time.Second), required, !after, redialhttp.Down, 503},
		{"never up, for a moment", in(redial.StateConnecting, time.Second), required, after, redialhttp.Down, 200},
		{"never up, for long", in(redial.StateConnecting, 12*time.Second), required, after, redialhttp.Down, 503},
		{"closed", in(redial.StateClosed, time.Second), required, after, redialhttp.Down, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var opts []redialhttp.Option
			if tc.required {
				opts = append(opts, redialhttp.Required())
			}
			if tc.after {
				opts = append(opts, redialhttp.After(10*time.Second))
			}
			h := redialhttp.Handler(tc.source, opts...)
			r := do(t, h, http.MethodGet)
			assert.Equal(t, tc.code, r.StatusCode)
			assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
			assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
			var got struct {
				Status, State, Cause string
				Since                time.Time
				Outages              int
				Nodes                []struct{ Addr, State, Cause string }
			}
			require.NoError(t, json.Unmarshal([]byte(body(t, r)), &got))
			assert.Equal(t, string(tc.status), got.Status)
			assert.Equal(t, tc.source.stats.State.String(), got.State)
			assert.Equal(t, "heartbeat_missed", got.Cause)
			assert.Equal(t, 3, got.Outages)
			assert.True(t, tc.source.stats.Since.Equal(got.Since))
			require.Len(t, got.Nodes, len(tc.source.stats.Nodes))
			for i, n := range got.Nodes {
				assert.Equal(t, tc.source.stats.Nodes[i].Addr, n.Addr)
				assert.Equal(t, tc.source.stats.Nodes[i].State.String(), n.State)
			}

			head := do(t, h, http.MethodHead)
			assert.Equal(t, tc.code, head.StatusCode)
			assert.Empty(t, body(t, head))
			assert.Equal(t, r.Header.Get("Content-Length"), head.Header.Get("Content-Length"))
		})
	}
}

// A node that could not be reached since the program was started is one less; one that nobody has
// asked for is none.
func TestStatusOf_NodeNeverReached(t *testing.T) {
	s := in(redial.StateConnected, time.Hour, redial.StateConnected, redial.StateConnecting).stats
	assert.Equal(t, redialhttp.Up, redialhttp.StatusOf(s))
	s.Nodes[1].LastError = "dial tcp 127.0.0.1:2: connect: connection refused"
	assert.Equal(t, redialhttp.Degraded, redialhttp.StatusOf(s))
}

func TestHandlers_OtherMethods(t *testing.T) {
	for _, h := range []http.Handler{redialhttp.Handler(in(redial.StateConnected, 0)), redialhttp.Page(in(redial.StateConnected, 0))} {
		r := do(t, h, http.MethodPost)
		assert.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)
		assert.Equal(t, "GET, HEAD", r.Header.Get("Allow"))
		assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	}
}

// No client, or a pointer to none, is an error in words and no panic.
func TestHandlers_NoClient(t *testing.T) {
	for _, s := range []redialhttp.Source{nil, (*redial.Client)(nil), (*redial.Supervisor)(nil)} {
		for _, h := range []http.Handler{redialhttp.Handler(s, redialhttp.Required()), redialhttp.Page(s)} {
			r := do(t, h, http.MethodGet)
			assert.Equal(t, http.StatusInternalServerError, r.StatusCode)
			assert.Contains(t, body(t, r), "there is no client to ask")
			assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
		}
	}
}

// A client through its life, as both show it. What it is sent is shown nowhere.
func TestHandlers_ThroughAnOutage(t *testing.T) {
	server := miniredis.RunT(t)
	server.RequireAuth("secret-password")
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr(), Password: "secret-password"}, redial.WithGrace(0))
	defer rdb.Close()
	health, page := redialhttp.Handler(rdb, redialhttp.Required()), redialhttp.Page(rdb, redialhttp.Title("Cache <main>"))
	shows := func(code int, state string) string {
		t.Helper()
		h := do(t, health, http.MethodGet)
		assert.Equal(t, code, h.StatusCode)
		assert.Contains(t, body(t, h), `"state":"`+state+`"`)
		p := do(t, page, http.MethodGet)
		assert.Equal(t, http.StatusOK, p.StatusCode)
		text := body(t, p)
		assert.Contains(t, text, "</strong> "+state+" for")
		assert.NotContains(t, text, "secret")
		assert.Contains(t, text, "Cache &lt;main&gt;")
		return text
	}
	require.NoError(t, rdb.WaitReady(t.Context()))
	require.NoError(t, rdb.Set(t.Context(), "secret-key", "secret-value", 0).Err())
	assert.Contains(t, shows(200, "connected"), "none since the client was built")
	server.Close()
	for !errors.Is(rdb.Set(t.Context(), "secret-key", "secret-value", 0).Err(), redial.ErrUnavailable) {
	}
	require.NoError(t, rdb.WaitForState(t.Context(), redial.StateReconnecting))
	require.ErrorIs(t, rdb.Get(t.Context(), "secret-key").Err(), redial.ErrUnavailable)
	text := shows(503, "reconnecting")
	assert.Contains(t, text, "so far")
	assert.Contains(t, text, "class=\"now\"")
	assert.Contains(t, text, "<code>connection_lost</code>")
	require.NoError(t, server.Restart())
	require.NoError(t, rdb.WaitReady(t.Context()))
	text = shows(200, "connected")
	assert.NotContains(t, text, "so far")
	assert.Contains(t, text, "<code>connection_lost</code>")
	require.NoError(t, rdb.Close())
	text = shows(503, "closed")
	assert.Contains(t, text, "<code>connection_lost</code>", "a closed client shows its last values")
}

// The page needs nothing but itself.
func TestPage_IsSelfContained(t *testing.T) {
	s := in(redial.StateConnected, time.Minute, redial.StateConnected, redial.StateReconnecting)
	s.stats.LastError = `<script>alert("x")</script>`
	s.stats.Reason = `Reconnect(<b>reason</b>)`
	r := do(t, redialhttp.Page(s), http.MethodGet)
	text := body(t, r)
	assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	assert.Contains(t, r.Header.Get("Content-Security-Policy"), "default-src 'none'")
	for _, never := range []string{"<script", "<link", "<img", "@import", "url(", "http://", "https://", "<b>"} {
		assert.NotContains(t, text, never)
	}
	assert.Contains(t, text, "prefers-color-scheme: dark")
	assert.Regexp(t, `body \{[^}]*overflow-wrap: anywhere`, text, "a long name makes the page no wider than a telephone")
	assert.Contains(t, text, `<meta http-equiv="refresh" content="5">`)
	assert.Contains(t, text, "<h2>Nodes</h2>")
	open, closed := regexp.MustCompile(`<(\w+)[^>]*>`).FindAllStringSubmatch(text, -1), make(map[string]int)
	for _, m := range open {
		closed[m[1]]++
	}
	for _, m := range regexp.MustCompile(`</(\w+)>`).FindAllStringSubmatch(text, -1) {
		closed[m[1]]--
	}
	delete(closed, "meta")
	for name, n := range closed {
		assert.Zero(t, n, "<%s> is closed as often as it is opened", name)
	}

	never := body(t, do(t, redialhttp.Page(s, redialhttp.Reload(0)), http.MethodGet))
	assert.NotContains(t, never, "refresh")
	assert.NotContains(t, never, "reloads")
	assert.Contains(t, body(t, do(t, redialhttp.Page(s, redialhttp.Reload(30*time.Second)), http.MethodGet)), `content="30"`)
}

// The timeline is as long as it has to be, and what has just happened can be seen.
func TestPage_Timeline(t *testing.T) {
	now := time.Now()
	outage := func(ago, d time.Duration, over bool) redial.Outage {
		return redial.Outage{Began: now.Add(-ago), Duration: d, Over: over, Cause: redial.CauseConnectionLost, Reason: "connection lost", Waited: 7}
	}
	for _, tc := range []struct {
		name    string
		outages []redial.Outage
		span    string
		bars    []string
	}{
		{"none", nil, "15 min", nil},
		{"half, to now", []redial.Outage{outage(450*time.Second, 450*time.Second, false)}, "15 min", []string{"left: 50.0%; width: 50.0%"}},
		{"a blip", []redial.Outage{outage(30*time.Minute, time.Millisecond, true)}, "1 h", []string{"left: 50.0%; width: 0.5%"}},
		{"two", []redial.Outage{outage(12*time.Hour, 6*time.Hour, true), outage(0, 0, false)}, "1 d", []string{"left: 50.0%; width: 25.0%", "left: 99.5%; width: 0.5%"}},
		{"for ever", []redial.Outage{outage(90*24*time.Hour, 90*24*time.Hour, false)}, "30 d", []string{"left: 0.0%; width: 100.0%"}},
		{"long ago", []redial.Outage{outage(90*24*time.Hour, time.Hour, true)}, "30 d", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := in(redial.StateConnected, time.Minute)
			s.outages = tc.outages
			text := body(t, do(t, redialhttp.Page(s), http.MethodGet))
			assert.Contains(t, text, "<h2>The last "+tc.span+"</h2>")
			var bars []string
			for _, m := range regexp.MustCompile(`left: (\d+\.\d)\d+%; width: (\d+\.\d)\d+%`).FindAllStringSubmatch(text, -1) {
				bars = append(bars, "left: "+m[1]+"%; width: "+m[2]+"%")
			}
			assert.Len(t, bars, len(tc.bars))
			for i, want := range tc.bars {
				assert.Equal(t, want, roundUp(bars[i]))
			}
			assert.Equal(t, len(tc.outages), strings.Count(text, "<code>connection_lost</code>"))
		})
	}
}

// roundUp takes the time that the test itself took out of a number.
func roundUp(bar string) string {
	return strings.NewReplacer("49.9%", "50.0%", "24.9%", "25.0%", "99.4%", "99.5%", "99.9%", "100.0%").Replace(bar)
}

// A page never costs more than a look at what is at hand.
func BenchmarkPage(b *testing.B) {
	s := in(redial.StateConnected, time.Minute)
	h := redialhttp.Page(s)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	}
}

// A client may be closed while it is shown.
func TestHandlers_ClosedWhileShown(t *testing.T) {
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	var looks sync.WaitGroup
	closed := make(chan struct{})
	for _, h := range []http.Handler{redialhttp.Handler(rdb), redialhttp.Page(rdb)} {
		looks.Go(func() {
			for last := false; !last; {
				select {
				case <-closed:
					last = true
				default:
				}
				assert.Equal(t, http.StatusOK, do(t, h, http.MethodGet).StatusCode)
			}
		})
	}
	assert.ErrorIs(t, rdb.Ping(redial.FailFast(t.Context())).Err(), redial.ErrUnavailable)
	assert.NoError(t, rdb.Close())
	close(closed)
	looks.Wait()
}
