// Package sentinel finds out from the sentinels of a deployment where its master is, or a
// replica, and hears from them when the master moves. It knows nothing of what is sent to
// these servers, nor of what it means for those who are connected to them.
package sentinel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
)

// Limits are the numbers that a Directory goes by.
type Limits struct {
	Timeout     time.Duration // how long a sentinel that is connected may take to answer
	DialTimeout time.Duration // how long it may take to set up a connection to one
	Interval    time.Duration // after how much silence what is listened to is asked
	Patience    time.Duration // how long an answer may take before another one is asked, too
	Again       time.Duration // the longest time before those that say nothing are dialed anew
	Share       int           // of the time for which all say nothing, that this takes
	Doubt       time.Duration // how long others have to contradict an answer that is in doubt
	Pause       time.Duration // the longest one between two attempts to listen
	FirstPause  time.Duration // the shortest
	Survey      time.Duration // how often the one that is listened to is asked for others
	Former      time.Duration // for how long who was the master is in doubt when it is named
	Jitter      float64       // the part of a pause that is left to chance
	AtOnce      int           // how many are asked at a time
	Strangers   int           // how many of those that nobody vouches for are asked in one question
	Buffer      int           // the size of buffers
	Liveness    sys.Liveness  // how the kernel watches connections
}

// steady is how many of those that are asked at a time keep their whole time while there
// are others to ask; the rest make room.
const steady = 2

// errNone is why nobody can be asked when there are no sentinels. It has go-redis's words.
var errNone = errors.New("redis: no sentinels configured")

// DialFunc is the type of redis.Options.Dialer.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// Directory says where the servers of a deployment are. It is safe for concurrent use.
type Directory struct {
	opt    *redis.FailoverOptions // only read
	dialer DialFunc
	limits Limits
	words  error                     // why nobody can be asked, ever; nil: somebody may. Read-only once it is set
	mishap func(v any, stack []byte) // whom to tell of panics; the same

	life    context.Context // ends with Close
	end     context.CancelFunc
	workers sync.WaitGroup // Add only under mu, while not closed

	mu       sync.Mutex
	closed   bool                  // guarded by mu
	peers    []*peer               // guarded by mu; the sentinels that are known
	open     map[*client]struct{}  // guarded by mu; what Close closes
	answered time.Time             // guarded by mu; when one last gave an answer
	took     time.Duration         // guarded by mu; that has taken
	turn     int                   // guarded by mu; counts what becomes of attempts to ask
	asking   map[bool]*question    // guarded by mu; under way: for the master, and, true, for its replicas as well
	epoch    int                   // guarded by mu; how often Forget was called
	target   string                // guarded by mu; the server to dial; "": has to be asked for
	master   string                // guarded by mu; the last one heard of
	former   map[string]time.Time  // guarded by mu; masters before it, and until when
	doubts   string                // guarded by mu; the server that is named in vain, "": none
	moved    func(from, to string) // guarded by mu; whom to tell that the master is another
}

// question is one that is put for everybody who wants to know.
type question struct {
	tells  bool          // guarded by mu; who listens has asked, too
	done   chan struct{} // closed when there is an answer
	answer answer        // read-only then
	err    error         // the same
}

// answer is what a sentinel says.
type answer struct {
	master   string
	unnamed  error    // why that is "", of one that names replicas
	replicas []string // those that are up
	target   string   // the server to dial
	from     *peer
}

// New returns a directory for what opt says of sentinels, which is copied. dial makes the
// connections, to sentinels as to servers. It does no I/O.
func New(opt *redis.FailoverOptions, dial DialFunc, limits Limits) *Directory {
	own := *opt
	own.SentinelAddrs = slices.Clone(opt.SentinelAddrs)
	d := &Directory{
		opt: &own, dialer: dial, limits: limits,
		asking:   make(map[bool]*question),
		open:     make(map[*client]struct{}),
		former:   make(map[string]time.Time),
		moved:    func(string, string) {},
		mishap:   func(any, []byte) {},
		answered: time.Now(),
	}
	d.life, d.end = context.WithCancel(context.Background())
	for _, addr := range own.SentinelAddrs {
		d.addLocked(addr, true)
	}
	rand.Shuffle(len(d.peers), func(i, j int) { d.peers[i], d.peers[j] = d.peers[j], d.peers[i] })
	return d
}

// TellPanics has f called with the value and the stack of each panic that ends here: in the
// caller's code, or in go-redis's on what a sentinel says. f must not block. It must be called
// before anything else is.
func (d *Directory) TellPanics(f func(v any, stack []byte)) { d.mishap = f }

// Bar says why nobody can be asked, ever. It must be called before anything else is.
func (d *Directory) Bar(words error) { d.words = words }

// Words returns that, nil where somebody may be.
func (d *Directory) Words() error {
	if len(d.opt.SentinelAddrs) == 0 {
		return errNone
	}
	return d.words
}

// Dial is a Dialer: whatever addr is, it dials the server that the sentinels name.
func (d *Directory) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	addr, err := d.Where(ctx)
	if err != nil {
		return nil, err
	}
	return d.dialer(ctx, network, addr)
}

// Where returns the server to dial: the master, or with ReplicaOnly one of its replicas.
// It asks the sentinels unless they have been asked since Forget was last called.
func (d *Directory) Where(ctx context.Context) (string, error) {
	d.mu.Lock()
	target, closed := d.target, d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return "", redis.ErrClosed
	case target != "":
		return target, nil
	}
	a, err := d.inquire(ctx, d.opt.ReplicaOnly, false)
	return a.target, err
}

// Last returns the server that was named last, "" when it has to be asked for.
func (d *Directory) Last() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.target
}

// Forget has the sentinels asked again before the next dial. Whoever names the same server
// then may be cut off from the rest, so the others are asked as well.
func (d *Directory) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch++
	d.doubts = cmp.Or(d.target, d.doubts)
	d.target = ""
}

// Slots describes the deployment as a cluster of one shard whose last slot is the given
// one.
func (d *Directory) Slots(ctx context.Context, last int) ([]redis.ClusterSlot, error) {
	a, err := d.inquire(ctx, true, false)
	if err = cmp.Or(err, a.unnamed); err != nil {
		return nil, err
	}
	slices.Sort(a.replicas)
	all := []redis.ClusterNode{{Addr: a.master}}
	for _, addr := range slices.Compact(a.replicas) {
		if addr != a.master {
			all = append(all, redis.ClusterNode{Addr: addr})
		}
	}
	return []redis.ClusterSlot{{Start: 0, End: last, Nodes: all}}, nil
}

// inquire asks the sentinels, once for all who want to know. Who cannot wait any longer
// does not end the question for others. tells says that a change is to be told.
func (d *Directory) inquire(ctx context.Context, replicas, tells bool) (answer, error) {
	if words := d.Words(); words != nil {
		return answer{}, words
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return answer{}, redis.ErrClosed
	}
	q := d.asking[replicas]
	if q == nil {
		q = &question{done: make(chan struct{})}
		d.asking[replicas] = q
		epoch := d.epoch
		put := func() {
			a, err := d.ask(replicas)
			d.settle(q, replicas, epoch, a, err)
		}
		d.workers.Go(put)
	}
	q.tells = q.tells || tells
	d.mu.Unlock()
	select {
	case <-q.done:
		a := q.answer
		a.replicas = slices.Clone(a.replicas)
		return a, q.err
	case <-ctx.Done():
		return answer{}, fmt.Errorf("no sentinel has answered yet: %w", ctx.Err())
	}
}

// settle notes the answer to a question that was put in an epoch, and tells it.
func (d *Directory) settle(q *question, replicas bool, epoch int, a answer, err error) {
	tell := func() {}
	d.mu.Lock()
	d.asking[replicas] = nil
	switch {
	case d.closed:
		err = redis.ErrClosed
	case err == nil:
		if d.wasMasterLocked(a.master) && d.master != "" && d.master != d.doubts {
			a.master = d.master // they have not heard yet of what is known here
		}
		a.target = d.chooseLocked(a)
		if news := d.learnLocked(a.master); q.tells {
			tell = news
		}
		if epoch == d.epoch && (replicas || !d.opt.ReplicaOnly) {
			d.target, d.doubts = a.target, ""
		}
	}
	d.mu.Unlock()
	tell()
	q.answer, q.err = a, err
	close(q.done)
}

// chooseLocked returns the server to dial.
func (d *Directory) chooseLocked(a answer) string {
	if !d.opt.ReplicaOnly || len(a.replicas) == 0 {
		return a.master
	}
	others := slices.DeleteFunc(slices.Clone(a.replicas), func(addr string) bool { return addr == d.doubts })
	if len(others) == 0 {
		others = a.replicas
	}
	return others[rand.IntN(len(others))]
}

// learnLocked notes who is the master. It returns what is to be called, without the lock:
// it tells whoever listens, if that is news. "" is none.
func (d *Directory) learnLocked(addr string) func() {
	from := d.master
	if addr == "" {
		return func() {}
	}
	if from != "" && from != addr {
		d.former[from] = time.Now().Add(d.limits.Former)
	}
	delete(d.former, addr)
	d.master = addr
	if from == "" || from == addr {
		return func() {}
	}
	d.target, d.doubts = "", ""
	if !d.opt.ReplicaOnly {
		d.target = addr
	}
	moved := d.moved
	return func() { moved(from, addr) }
}

// wasMasterLocked reports whether addr was the master until a short time ago.
func (d *Directory) wasMasterLocked(addr string) bool {
	until, ok := d.former[addr]
	if ok && time.Now().After(until) {
		delete(d.former, addr)
		return false
	}
	return ok
}

// believed reports whether there is nothing against what a sentinel says.
func (d *Directory) believed(a answer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return a.master == "" || a.master != d.doubts && !d.wasMasterLocked(a.master)
}

// Close closes every connection to a sentinel, which ends every question and all
// listening. What dial, or a function of the caller, is still at is left to it.
func (d *Directory) Close() {
	d.mu.Lock()
	d.closed = true
	open := d.open
	d.open = nil
	d.mu.Unlock()
	d.end()
	for c := range open {
		c.close()
	}
	d.workers.Wait()
}
