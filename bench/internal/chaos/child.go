package chaos

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/testbed"
	"github.com/redis/go-redis/v9/logging"
)

// The words that the parent says to a child, one a line, each with a moment.
const (
	sayLoad  = "load"  // begin to issue calls; now
	saySurge = "surge" // begin the plan's surge; now
	sayCalm  = "calm"  // end it; now
	sayStop  = "stop"  // end the calls, close the client and report; when the fault was over
)

// leakPatience is how long what a client has started may outlive its Close.
// go-redis needs a second when its dials have failed, and a busy machine more.
const leakPatience = 5 * time.Second

// job is what a child is to do. It is the first line that it reads.
type job struct {
	Client string
	Addr   string
	Roots  []byte // PEM; empty: no TLS
	// Sentinel is the address of one that names Addr; empty: the client dials Addr itself.
	Sentinel string
	Own      bool // an own dialer, which counts; else the library's
	Plan     load.Plan
	// Patience is for how much longer the load goes on if some workers have had no
	// success by the end: a slow machine shall not pass for a client that never
	// comes back.
	Patience time.Duration
	// Topic makes the child a subscriber instead of a caller.
	Topic string
	// Cold lets the load begin before there is a server, and so maybe before a
	// client could be made.
	Cold bool
}

// message is what a child says: that it is ready, that the load has begun, why it
// failed, or what it has measured.
type message struct {
	Ready  bool   `json:",omitempty"`
	Error  string `json:",omitempty"`
	Result *Result
}

// Status is what a client said about a call.
type Status int

// The statuses. Unavailable and Unknown can only be told by redial.
const (
	OK Status = iota
	Failed
	Unavailable // certainly not executed
	Unknown     // may have been executed
	Unfinished  // had not returned when the run ended
)

// Record is one call, in microseconds since the load began.
type Record struct {
	Op         load.Op `json:"o"`
	Worker     int     `json:"w"`
	Begin, End int64
	Status     Status `json:"s"`
	Key        string `json:"k,omitempty"`
}

// Delivery is one message of a subscription: when it was published, as its payload
// says, and when it was received, in nanoseconds since the epoch.
type Delivery struct{ Sent, Got int64 }

// Result is what a child has measured.
type Result struct {
	Began      time.Time // when the load began
	Stopped    time.Time // when it was told to stop
	Calls      []Record
	Deliveries []Delivery
	Dials      []time.Time
	CPU        time.Duration // of the process while the load ran
	Late       time.Duration // of the load itself, at worst
	Goroutines int           // left after Close
	Sockets    int           // left after Close
	CloseError string        // what Close returned
	Errors     map[string]int
}

// Child does one job: it makes a client, waits for a word to load it and for
// another to stop, and reports. It is a process of its own so that processor time,
// goroutines and sockets are those of one client.
func Child(in io.Reader, out io.Writer) error {
	logging.Disable() // go-redis logs every failed dial
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	answer := json.NewEncoder(out)
	result, err := perform(lines, answer)
	if err != nil {
		return errors.Join(err, answer.Encode(message{Error: err.Error()}))
	}
	return answer.Encode(message{Result: result})
}

// listenFor waits for a word and returns it with the moment that comes with it.
func listenFor(lines *bufio.Scanner) (string, time.Time, error) {
	if !lines.Scan() {
		return "", time.Time{}, cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
	}
	var heard string
	var nanos int64
	if _, err := fmt.Sscan(lines.Text(), &heard, &nanos); err != nil {
		return "", time.Time{}, fmt.Errorf("chaos: heard %q: %w", lines.Text(), err)
	}
	return heard, time.Unix(0, nanos), nil
}

// await waits for that word and returns the moment that comes with it.
func await(lines *bufio.Scanner, word string) (time.Time, error) {
	heard, at, err := listenFor(lines)
	if err == nil && heard != word {
		err = fmt.Errorf("chaos: heard %q, not %q", heard, word)
	}
	return at, err
}

// surges follows the word of the parent until it says to stop.
func surges(l *load.OpenLoop, lines *bufio.Scanner) (healed time.Time, err error) {
	for {
		word, at, err := listenFor(lines)
		if err != nil || word == sayStop {
			return at, err
		}
		if word != saySurge && word != sayCalm {
			return at, fmt.Errorf("chaos: heard %q under load", word)
		}
		l.Surge(word == saySurge)
	}
}

func perform(lines *bufio.Scanner, answer *json.Encoder) (*Result, error) {
	if !lines.Scan() {
		return nil, cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
	}
	var j job
	if err := json.Unmarshal(lines.Bytes(), &j); err != nil {
		return nil, err
	}
	kind, ok := client.Find(j.Client)
	if !ok {
		return nil, fmt.Errorf("chaos: unknown client %q", j.Client)
	}
	set := client.Settings{Addr: j.Addr, Sentinel: j.Sentinel}
	if j.Own {
		set.Dials = &client.Dials{}
	}
	if len(j.Roots) > 0 {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(j.Roots) {
			return nil, errors.New("chaos: no certificate in the job")
		}
		set.TLS = &tls.Config{RootCAs: roots}
	}
	goroutines := runtime.NumGoroutine()
	sockets, err := testbed.Sockets()
	if err != nil {
		return nil, err
	}
	c, err := open(kind, set, j.Cold)
	if err != nil {
		return nil, err
	}
	if !j.Cold && j.Topic == "" {
		if err := warm(c); err != nil {
			return nil, err
		}
	}
	if err := answer.Encode(message{Ready: true}); err != nil {
		return nil, err
	}
	var result *Result
	if j.Topic == "" {
		result, err = call(c, j, lines)
	} else {
		result, err = listen(c, j.Topic, lines)
	}
	if err != nil {
		return nil, err
	}
	if err := c.Close(); err != nil {
		result.CloseError = err.Error()
	}
	if j.Own {
		result.Dials = set.Dials.Times()
	}
	result.Goroutines, result.Sockets, err = leftovers(goroutines, sockets)
	return result, err
}

// leftovers counts the goroutines and sockets beyond those there were before.
func leftovers(goroutines, sockets int) (int, int, error) {
	for giveUp := time.Now().Add(leakPatience); ; {
		s, err := testbed.Sockets()
		if err != nil {
			return 0, 0, err
		}
		g := runtime.NumGoroutine()
		if g <= goroutines && s <= sockets || time.Now().After(giveUp) {
			return max(g-goroutines, 0), max(s-sockets, 0), nil
		}
		time.Sleep(5 * time.Millisecond) // the end of a goroutine cannot be waited for
	}
}

// warmConns is how many connections every client has opened before the load.
const warmConns = 20

// warm opens connections by blocking on all of them at once, and then uses them.
// On a busy machine a client with short timeouts may need a second attempt.
func warm(c client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		errs := make([]error, warmConns)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = errors.Join(c.Block(ctx, time.Second), c.Get(ctx, "key")) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// call runs the load.
func call(c client.Client, j job, lines *bufio.Scanner) (*Result, error) {
	if _, err := await(lines, sayLoad); err != nil {
		return nil, err
	}
	before, err := testbed.CPU()
	if err != nil {
		return nil, err
	}
	r := &Result{Began: time.Now(), Errors: make(map[string]int)}
	l := load.Open(c, j.Plan)
	healed, stopErr := surges(l, lines)
	for giveUp := time.Now().Add(j.Patience); stopErr == nil && time.Now().Before(giveUp) && !l.Back(j.Plan.Workers, healed); {
		time.Sleep(20 * time.Millisecond)
	}
	r.Stopped = time.Now()
	after, err := testbed.CPU()
	calls, late := l.Stop(j.Plan.Deadline + 500*time.Millisecond)
	stopped := time.Now()
	if err := errors.Join(stopErr, err); err != nil {
		return nil, err
	}
	r.CPU, r.Late = after-before, late
	for _, x := range calls {
		rec := Record{Op: x.Op, Worker: x.Worker, Key: x.Key, Status: status(x.Err),
			Begin: x.Begin.Sub(r.Began).Microseconds(), End: x.End.Sub(r.Began).Microseconds()}
		switch {
		case x.End.IsZero():
			rec.Status, rec.End = Unfinished, stopped.Sub(r.Began).Microseconds()
		case x.Err != nil:
			r.Errors[numbers.ReplaceAllString(x.Err.Error(), "N")]++
		}
		r.Calls = append(r.Calls, rec)
	}
	return r, nil
}

// numbers are what makes errors of one sort look different.
var numbers = regexp.MustCompile(`[0-9.:]*[0-9]`)

func status(err error) Status {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, redial.ErrUnavailable):
		return Unavailable
	case errors.Is(err, redial.ErrOutcomeUnknown):
		return Unknown
	}
	return Failed
}

// listen runs a subscription.
func listen(c client.Client, topic string, lines *bufio.Scanner) (*Result, error) {
	if _, err := await(lines, sayLoad); err != nil {
		return nil, err
	}
	before, err := testbed.CPU()
	if err != nil {
		return nil, err
	}
	r := &Result{Began: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var parseErr error
	ended := make(chan error, 1)
	go func() {
		ended <- c.Subscribe(ctx, topic, func(payload string) {
			d := Delivery{Got: time.Now().UnixNano()}
			if _, err := fmt.Sscan(payload, &d.Sent); err != nil {
				parseErr = err
			}
			r.Deliveries = append(r.Deliveries, d)
		})
	}()
	_, stopErr := await(lines, sayStop)
	r.Stopped = time.Now()
	after, err := testbed.CPU()
	cancel()
	r.CPU = after - before
	subscribeErr := <-ended // happens after the last message
	return r, errors.Join(stopErr, err, subscribeErr, parseErr)
}

// open makes a client. Some constructors fail without a server; a cold one is
// then repeated, and calls wait for it.
func open(kind client.Kind, set client.Settings, cold bool) (client.Client, error) {
	c, err := kind.Open(set)
	if err == nil || !cold {
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	lazy := &lazyClient{ready: make(chan struct{}), cancel: cancel}
	lazy.wg.Go(func() {
		ticker := time.NewTicker(lazyEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			if c, err := kind.Open(set); err == nil {
				lazy.client = c
				close(lazy.ready)
				return
			}
		}
	})
	return lazy, nil
}

// lazyEvery is the time between two attempts to make a client.
const lazyEvery = 100 * time.Millisecond

// lazyClient is one that could not be made yet.
type lazyClient struct {
	wg     sync.WaitGroup
	cancel context.CancelFunc
	ready  chan struct{} // closed when client is set
	client client.Client
}

func (l *lazyClient) await(ctx context.Context) error {
	select {
	case <-l.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *lazyClient) Get(ctx context.Context, key string) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.Get(ctx, key)
}

func (l *lazyClient) Set(ctx context.Context, key, value string) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.Set(ctx, key, value)
}

func (l *lazyClient) Incr(ctx context.Context, key string) (int64, error) {
	if err := l.await(ctx); err != nil {
		return 0, err
	}
	return l.client.Incr(ctx, key)
}

func (l *lazyClient) GetIncr(ctx context.Context, read, count string) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.GetIncr(ctx, read, count)
}

func (l *lazyClient) Busy(ctx context.Context, d time.Duration) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.Busy(ctx, d)
}

func (l *lazyClient) Block(ctx context.Context, d time.Duration) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.Block(ctx, d)
}

func (l *lazyClient) Subscribe(ctx context.Context, topic string, got func(string)) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.client.Subscribe(ctx, topic, got)
}

func (l *lazyClient) Close() error {
	l.cancel()
	l.wg.Wait()
	if l.client == nil {
		return nil
	}
	return l.client.Close()
}
