package sentinel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

var limits = Limits{
	Timeout: time.Second, DialTimeout: 5 * time.Second, Interval: time.Second,
	Patience: 50 * time.Millisecond, Again: 250 * time.Millisecond, Share: 100, Doubt: 250 * time.Millisecond,
	Pause: 250 * time.Millisecond, FirstPause: 15 * time.Millisecond, Survey: 30 * time.Second,
	Former: 30 * time.Second, Jitter: 0.1, AtOnce: 4, Strangers: 8, Buffer: 4096,
}

// ward is sentinels in memory, by address. The rest is refused.
type ward struct {
	t testing.TB

	mu     sync.Mutex
	all    map[string]*redialtest.FakeServer
	says   map[string]string   // address of the master; "": knows none
	names  map[string][]string // ip, port and flags of others
	silent map[string]bool
	slow   time.Duration
	odd    map[string]string // replies in place of others, by the command or what SENTINEL is asked
	dialed []string
}

func newWard(t testing.TB) *ward {
	return &ward{t: t, all: map[string]*redialtest.FakeServer{}, says: map[string]string{}, names: map[string][]string{}, silent: map[string]bool{}, odd: map[string]string{}}
}

func (w *ward) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *ward) add(addr, master string) *redialtest.FakeServer {
	srv := redialtest.NewFakeServerPipe(w.t)
	srv.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		isQuestion := strings.EqualFold(args[0], "sentinel")
		word := strings.ToLower(args[0])
		if isQuestion {
			word = strings.ToLower(args[1])
		}
		w.mu.Lock()
		slow := w.slow
		w.mu.Unlock()
		time.Sleep(slow)
		w.mu.Lock()
		defer w.mu.Unlock()
		switch reply := w.odd[word]; {
		case reply != "":
			return redialtest.Reply(reply)
		case !isQuestion:
			return redialtest.Handle
		}
		switch word {
		case "get-master-addr-by-name":
			if w.says[addr] == "" {
				return redialtest.Reply("*-1\r\n")
			}
			host, port, _ := net.SplitHostPort(w.says[addr])
			return redialtest.Reply(list(host, port))
		case "sentinels":
			names := w.names[addr]
			reply := fmt.Sprintf("*%d\r\n", len(names)/3)
			for s := range slices.Chunk(names, 3) {
				reply += list("ip", s[0], "port", s[1], "flags", s[2])
			}
			return redialtest.Reply(reply)
		}
		return redialtest.Reply("*1\r\n" + list("ip", "10.0.0.3", "port", "6379", "flags", "slave"))
	})
	w.set(func() { w.all[addr], w.says[addr] = srv, master })
	return srv
}

func list(words ...string) string {
	reply := fmt.Sprintf("*%d\r\n", len(words))
	for _, s := range words {
		reply += fmt.Sprintf("$%d\r\n%s\r\n", len(s), s)
	}
	return reply
}

func (w *ward) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, addr)
	srv, silent := w.all[addr], w.silent[addr]
	w.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case srv == nil:
		return nil, errors.New("refused")
	}
	return srv.Dial(ctx, network, addr)
}

// directory returns one that knows some sentinels, in this order.
func (w *ward) directory(t testing.TB, addrs ...string) *Directory {
	d := New(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: addrs, DisableIdentity: true}, w.dial, limits)
	slices.SortFunc(d.peers, func(a, b *peer) int { return slices.Index(addrs, a.addr) - slices.Index(addrs, b.addr) })
	t.Cleanup(d.Close)
	return d
}

func (d *Directory) known() (keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		keys = append(keys, p.key)
	}
	slices.Sort(keys)
	return keys
}

const (
	one, two, three = "10.0.1.1:26379", "10.0.1.2:26379", "10.0.1.3:26379"
	masterA         = "10.0.0.1:6379"
	masterB         = "10.0.0.2:6379"
)

func bubble(t *testing.T, f func(t *testing.T, w *ward)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWard(t)) })
}

// The list shrinks as well as grows, but for those that the caller has named.
func TestDiscover(t *testing.T) {
	for name, c := range map[string]struct{ first, then, known []string }{
		"more":                 {nil, []string{"10.0.1.2", "26379", "sentinel"}, []string{one, two, three}},
		"not any more":         {[]string{"10.0.1.2", "26379", "sentinel"}, nil, []string{one, three}},
		"down":                 {[]string{"10.0.1.2", "26379", "sentinel"}, []string{"10.0.1.2", "26379", "s_down,sentinel,disconnected"}, []string{one, three}},
		"never up":             {nil, []string{"10.0.1.2", "26379", "s_down,sentinel"}, []string{one, three}},
		"cut off from another": {nil, []string{"10.0.1.2", "26379", "sentinel,disconnected"}, []string{one, two, three}},
		"named by the caller":  {nil, []string{"10.0.1.3", "26379", "s_down,sentinel"}, []string{one, three}},
		"itself":               {nil, []string{"10.0.1.1", "26379", "sentinel,myself"}, []string{one, three}},
		"itself, down":         {nil, []string{"10.0.1.1", "26379", "s_down,sentinel"}, []string{one, three}},
		"twice":                {nil, []string{"10.0.1.2", "26379", "sentinel", "10.0.1.2", "26379", "sentinel"}, []string{one, two, three}},
		"IPv6":                 {nil, []string{"::1", "26379", "sentinel", "0:0:0:0:0:0:0:1", "26379", "sentinel"}, []string{one, three, "[::1]:26379"}},
		"mapped":               {nil, []string{"::ffff:10.0.1.3", "26379", "sentinel"}, []string{one, three}},
		"names":                {nil, []string{"S.example", "26379", "sentinel", "s.example", "26379", "sentinel"}, []string{one, three, "s.example:26379"}},
		"no address":           {nil, []string{"", "26379", "sentinel", "10.0.1.2", "", "sentinel"}, []string{one, three}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				w.add(one, masterA)
				d := w.directory(t, one, three, one, "10.0.1.1:26379")
				p, cl, err := d.source(t.Context())
				require.NoError(t, err)
				for _, names := range [][]string{c.first, c.then} {
					w.set(func() { w.names[one] = names })
					d.discover(t.Context(), p, cl)
				}
				assert.Equal(t, c.known, d.known())
			})
		})
	}
}

// Who has answered last is asked first, then those that the caller has named, then others.
func TestCandidates(t *testing.T) {
	d := New(&redis.FailoverOptions{SentinelAddrs: []string{"a:1", "b:1"}}, nil, limits)
	defer d.Close()
	for i := range 20 {
		d.addLocked(fmt.Sprintf("x%02d:1", i), false)
	}
	order := func() (addrs []string) {
		for _, p := range d.candidates() {
			addrs = append(addrs, strings.TrimSuffix(p.addr, ":1"))
		}
		return addrs
	}
	set := func(addr string, good, failed int) {
		for _, p := range d.peers {
			if p.addr == addr+":1" {
				p.good, p.failed = good, failed
			}
		}
	}
	set("a", 0, 1)
	assert.Equal(t, []string{"b", "a", "x00", "x01", "x02", "x03", "x04", "x05", "x06", "x07"}, order())
	set("x19", 3, 0)
	set("x18", 2, 0)
	set("x00", 0, 4)
	assert.Equal(t, []string{"x19", "x18", "b", "a", "x01", "x02", "x03", "x04", "x05", "x06", "x07", "x08"}, order())
}

// What is dead, silent, or knows nothing, holds nobody up for long.
func TestWhere_OthersAreAsked(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(w *ward)
		most  time.Duration
	}{
		"well":            {func(*ward) {}, 0},
		"refused":         {func(w *ward) { delete(w.all, one) }, 0},
		"silent":          {func(w *ward) { w.silent[one] = true }, limits.Patience},
		"two silent":      {func(w *ward) { w.silent[one], w.silent[two] = true, true }, limits.Patience},
		"unknown master":  {func(w *ward) { w.says[one] = "" }, 0},
		"garbage":         {func(w *ward) { w.says[one] = ":" }, 0},
		"only the second": {func(w *ward) { delete(w.all, one); delete(w.all, three) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				for _, addr := range []string{one, two, three} {
					w.add(addr, masterA)
				}
				w.set(func() { c.spoil(w) })
				d := w.directory(t, one, two, three)
				began := time.Now()
				addr, err := d.Where(t.Context())
				require.NoError(t, err)
				assert.Equal(t, masterA, addr)
				assert.LessOrEqual(t, time.Since(began), c.most)
			})
		})
	}
}

// All are dead, then one is back.
func TestWhere_OneIsBack(t *testing.T) {
	for name, silent := range map[string]bool{"refused": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				w.set(func() { w.silent[one], w.silent[two], w.silent[three] = silent, silent, silent })
				d := w.directory(t, one, two, three)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				_, err := d.Where(ctx)
				require.Error(t, err)
				require.ErrorContains(t, err, "no sentinel")
				w.add(three, masterA)
				w.set(func() { w.silent[three] = false })
				began := time.Now()
				addr, err := d.Where(t.Context())
				require.NoError(t, err)
				assert.Equal(t, masterA, addr)
				assert.LessOrEqual(t, time.Since(began), 200*time.Millisecond)
			})
		})
	}
}

// The only one is back, and names the server that it has named before: its own attempts that
// hang, because their packets were lost, are nobody who might contradict it.
func TestWhere_TheOnlyOneIsBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		d := w.directory(t, one)
		_, err := d.Where(t.Context())
		require.NoError(t, err)
		w.set(func() { w.silent[one] = true })
		d.mu.Lock()
		lost := d.peers[0].client
		d.peers[0].client = nil // its connection is broken
		d.mu.Unlock()
		lost.close()
		d.Forget()
		where := make(chan string)
		go func() {
			addr, err := d.Where(t.Context())
			assert.NoError(t, err)
			where <- addr
		}()
		time.Sleep(4 * time.Second)
		w.set(func() { w.silent[one] = false })
		healed := time.Now()
		assert.Equal(t, masterA, <-where)
		assert.LessOrEqual(t, time.Since(healed), 2*limits.Patience)
	})
}

// One that takes its time is not dialed again and again for that: it has as long as it took.
func TestWhere_OneIsSlow(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		w.set(func() { w.slow = 700 * time.Millisecond })
		d := w.directory(t, one)
		for question := range 5 {
			d.Forget()
			addr, err := d.Where(t.Context())
			require.NoError(t, err)
			assert.Equal(t, masterA, addr)
			if question == 0 { // of the first nothing is known
				w.set(func() { w.dialed = nil })
			}
		}
		w.set(func() { assert.LessOrEqual(t, len(w.dialed), 4, "one a question") })
	})
}

// One that is asked again and again, while others say nothing, is found as soon as it is
// back: after it has refused, and after the oldest attempt at it has given up.
func TestWhere_OneIsBackAmongSilentOnes(t *testing.T) {
	for name, c := range map[string]struct {
		silent bool
		after  time.Duration
	}{
		"it refused":               {false, 2 * time.Second},
		"it was silent":            {true, 2 * time.Second},
		"it was silent for longer": {true, limits.DialTimeout + 10*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				w.set(func() { w.silent[one], w.silent[two] = c.silent, true })
				d := w.directory(t, one, two)
				asked := make(chan error, 1)
				go func() {
					addr, err := d.Where(t.Context())
					assert.Equal(t, masterA, addr)
					asked <- err
				}()
				time.Sleep(c.after)
				w.add(one, masterA)
				w.set(func() { w.silent[one] = false })
				began := time.Now()
				require.NoError(t, <-asked)
				assert.LessOrEqual(t, time.Since(began), limits.Again+2*limits.Patience)
			})
		})
	}
}

// Who names the server that has just been given up is believed only if nobody knows
// better.
func TestForget_OthersAreAsked(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		for _, addr := range []string{one, two, three} {
			w.add(addr, masterA)
		}
		d := w.directory(t, one, two, three)
		where := func() string {
			addr, err := d.Where(t.Context())
			require.NoError(t, err)
			return addr
		}
		assert.Equal(t, masterA, where())
		d.Forget()
		assert.Equal(t, masterA, where(), "all say so")
		w.set(func() { w.says[three] = masterB })
		d.Forget()
		assert.Equal(t, masterB, where())
		w.set(func() { w.says[three] = masterA }) // it is cut off, too, or has been told nonsense
		d.mu.Lock()
		d.target = ""
		d.mu.Unlock()
		assert.Equal(t, masterB, where(), "what was the master a moment ago")
		d.Forget()
		assert.Equal(t, masterA, where(), "unless the new one does not serve")
		time.Sleep(limits.Former + time.Second)
		d.Forget()
		began := time.Now()
		w.set(func() { w.silent[two], w.silent[three] = true, true })
		w.all[two].CloseConns()
		w.all[three].CloseConns()
		assert.Equal(t, masterA, where())
		assert.LessOrEqual(t, time.Since(began), limits.Doubt)
	})
}

// With ReplicaOnly a replica is dialed, whoever asks for the master meanwhile.
func TestWhere_ReplicaOnly(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		d := New(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{one}, ReplicaOnly: true, DisableIdentity: true}, w.dial, limits)
		defer d.Close()
		d.Listen(func(string, string) {})
		for range 5 {
			time.Sleep(limits.Interval)
			addr, err := d.Where(t.Context())
			require.NoError(t, err)
			assert.Equal(t, "10.0.0.3:6379", addr)
			d.Forget()
		}
	})
}

// With ReplicaOnly it is enough to hear of a replica.
func TestWhere_ReplicaOnly_MasterIsNotTold(t *testing.T) {
	for name, reply := range map[string]string{
		"not allowed": "-NOPERM this user has no permissions to run the 'sentinel|get-master-addr-by-name' command\r\n",
		"not known":   "*-1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				w.add(one, masterA)
				w.odd["get-master-addr-by-name"] = reply
				d := New(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{one}, ReplicaOnly: true, DisableIdentity: true}, w.dial, limits)
				defer d.Close()
				moves := make(chan string, 10)
				d.Listen(func(_, to string) { moves <- to })
				for range 5 {
					addr, err := d.Where(t.Context())
					require.NoError(t, err)
					assert.Equal(t, "10.0.0.3:6379", addr)
					d.Forget()
					time.Sleep(limits.Interval)
				}
				w.set(func() { w.odd["replicas"] = "*0\r\n" })
				_, err := d.Where(t.Context())
				assert.ErrorContains(t, err, "no sentinel answers")
				assert.Empty(t, moves)
			})
		})
	}
}

// What follows the address of the master is nobody's business.
func TestWhere_MoreThanAnAddress(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		host, port, _ := net.SplitHostPort(masterB)
		w.odd["get-master-addr-by-name"] = list(host, port, "more")
		addr, err := w.directory(t, one).Where(t.Context())
		require.NoError(t, err)
		assert.Equal(t, masterB, addr)
	})
}

// A sentinel that nobody may listen to is asked, on the connection that there is.
func TestListen_Refused(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		w.odd["subscribe"] = "-NOPERM this user has no permissions to access the '+switch-master' channel\r\n"
		d := w.directory(t, one)
		moves := make(chan string, 10)
		d.Listen(func(_, to string) { moves <- to })
		time.Sleep(time.Minute)
		w.set(func() { assert.LessOrEqual(t, len(w.dialed), 8) })
		began := time.Now()
		w.set(func() { w.says[one] = masterB })
		assert.Equal(t, masterB, <-moves)
		assert.LessOrEqual(t, time.Since(began), limits.Interval)
		w.set(func() { delete(w.odd, "subscribe") })
		time.Sleep(limits.Survey + 2*limits.Interval)
		assert.Equal(t, 1, w.all[one].Executed("subscribe"))
	})
}

// A change is told to who listens, with the master that was.
func TestListen_Moved(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		w.add(one, masterA)
		d := w.directory(t, one)
		moves := make(chan [2]string, 10)
		d.Listen(func(from, to string) { moves <- [2]string{from, to} })
		time.Sleep(3 * time.Second)
		assert.Empty(t, moves)
		w.set(func() { w.says[one] = masterB })
		assert.Equal(t, [2]string{masterA, masterB}, <-moves)
		assert.Equal(t, masterB, d.Last())
		w.all[one].CloseConns()
		time.Sleep(3 * time.Second)
		assert.Empty(t, moves)
	})
}

// Close is prompt whatever functions of the caller are at.
func TestClose_CallerHangs(t *testing.T) {
	for name, hang := range map[string]func(opt *redis.FailoverOptions, block func()){
		"dialer": func(o *redis.FailoverOptions, block func()) { o.OnConnect = nil },
		"OnConnect": func(o *redis.FailoverOptions, block func()) {
			o.OnConnect = func(context.Context, *redis.Conn) error { block(); return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *ward) {
				w.add(one, masterA)
				over := make(chan struct{})
				opt := &redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{one}, DisableIdentity: true}
				hang(opt, func() { <-over })
				dial := w.dial
				if opt.OnConnect == nil {
					dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
						<-over
						return w.dial(ctx, network, addr)
					}
				}
				d := New(opt, dial, limits)
				d.Listen(func(string, string) {})
				time.Sleep(100 * time.Millisecond)
				began := time.Now()
				d.Close()
				assert.Zero(t, time.Since(began))
				_, err := d.Where(t.Context())
				assert.ErrorIs(t, err, redis.ErrClosed)
				close(over)
			})
		})
	}
}

// The credentials are those for sentinels.
func TestWhere_Auth(t *testing.T) {
	bubble(t, func(t *testing.T, w *ward) {
		srv := redialtest.NewFakeServerPipe(t)
		var welcome sync.Map
		srv.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
			switch strings.ToLower(args[0]) {
			case "hello":
				if slices.Contains(args, "secret") {
					welcome.Store(c.ID(), true)
				}
			case "sentinel":
				if _, ok := welcome.Load(c.ID()); !ok {
					return redialtest.Reply("-NOAUTH Authentication required.\r\n")
				}
				return redialtest.Reply(list("db.example", "6379"))
			}
			return redialtest.Handle
		})
		w.set(func() { w.all[one] = srv })
		for password, want := range map[string]string{"secret": "db.example:6379", "": ""} {
			d := New(&redis.FailoverOptions{
				MasterName: "m", SentinelAddrs: []string{one}, SentinelUsername: "u", SentinelPassword: password, Password: "other", DisableIdentity: true,
			}, w.dial, limits)
			addr, err := d.Where(t.Context())
			assert.Equal(t, want, addr)
			assert.Equal(t, want == "", err != nil)
			d.Close()
		}
	})
}

// Whatever a sentinel replies, what is taken from it is an address or an error.
func FuzzSentinel(f *testing.F) {
	for _, reply := range []string{
		"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n", "*-1\r\n", "_\r\n", "*0\r\n", "*1\r\n$1\r\nx\r\n", "*3\r\n+a\r\n+b\r\n+c\r\n", "*2\r\n$0\r\n\r\n$0\r\n\r\n",
		"-IDONTKNOW no such master\r\n", "-NOGOODSLAVE\r\n", "+OK\r\n", ":1\r\n", "", "*2\r\n*0\r\n$-1\r\n",
		"*1\r\n*6\r\n+ip\r\n+::1\r\n+port\r\n+1\r\n+flags\r\n+slave,s_down\r\n", "*1\r\n%3\r\n+ip\r\n+h\r\n+port\r\n+1\r\n+flags\r\n+disconnected\r\n",
		"*2\r\n*4\r\n+ip\r\n+h\r\n+port\r\n+1\r\n*2\r\n+ip\r\n+h\r\n", "*1\r\n*3\r\n+ip\r\n+h\r\n+port\r\n", "*1\r\n*-1\r\n",
	} {
		f.Add([]byte(reply))
	}
	large := regexp.MustCompile(`\d{6}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if large.Match(raw) {
			return // go-redis makes room for as many elements as a server announces
		}
		dial := func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go answerOnce(far, raw)
			return near, nil
		}
		d := New(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"}, DisableIdentity: true}, dial, limits)
		defer d.Close()
		c := d.connect("127.0.0.1:1")
		ctx := context.Background()
		found := map[string]error{}
		addr, err := d.askMaster(ctx, c)
		found[addr] = err
		replicas, err := d.askReplicas(ctx, c)
		for _, addr := range replicas {
			found[addr] = err
		}
		d.discover(ctx, d.peers[0], c)
		for _, addr := range d.known() {
			found[addr] = nil
		}
		for addr, err := range found {
			if addr == "" && err != nil {
				continue
			}
			if host, port, split := net.SplitHostPort(addr); err != nil || split == nil && (host == "" || port == "") {
				t.Fatalf("%q, %v out of %q", addr, err, raw)
			}
		}
	})
}

// answerOnce answers the handshake, and the first question with raw, and hangs up.
func answerOnce(nc net.Conn, raw []byte) {
	defer nc.Close()
	r := bufio.NewReader(nc)
	for {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.EqualFold(strings.TrimSpace(line), "hello"):
			for {
				if rest, err := r.ReadString('\n'); err != nil || r.Buffered() == 0 && rest != "" {
					break
				}
			}
			if _, err := nc.Write([]byte("-ERR unknown command\r\n")); err != nil {
				return
			}
		case strings.EqualFold(strings.TrimSpace(line), "sentinel"):
			for r.Buffered() > 0 {
				_, _ = r.ReadByte()
			}
			_, _ = nc.Write(raw)
			return
		}
	}
}
