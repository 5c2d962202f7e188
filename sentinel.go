package redial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/sys"
)

// sentinels finds out from the sentinels of a deployment where its master is, or a
// replica, and hears from them when the master moves.
type sentinels struct {
	opt     *redis.FailoverOptions // only read
	timeout time.Duration          // of one question
	dial    dialFunc

	questions sync.WaitGroup // under way; Add only under mu, while not closed

	mu      sync.Mutex
	addrs   []string                         // guarded by mu; the one to ask first comes first
	clients map[string]*redis.SentinelClient // guarded by mu; nil when closed
	target  string                           // guarded by mu; the server to dial; "": has to be asked for
	master  string                           // guarded by mu; the last one heard of
	former  map[string]time.Time             // guarded by mu; masters before it, and until when
	asking  chan struct{}                    // guarded by mu; closed when the question under way is answered; nil: there is none
}

// newSentinels checks the options of a client and copies what opt says of sentinels.
// It does no I/O.
func newSentinels(opt *redis.FailoverOptions, opts []Option) (*sentinels, *config, error) {
	cfg, err := newConfig(opts)
	switch {
	case err != nil:
		return nil, nil, err
	case opt == nil:
		return nil, nil, errors.New("redial: failover options are nil")
	}
	own := *opt
	own.SentinelAddrs = slices.Clone(opt.SentinelAddrs)
	s := &sentinels{
		opt: &own, timeout: cfg.timeout,
		addrs:   slices.Clone(opt.SentinelAddrs),
		clients: make(map[string]*redis.SentinelClient),
		former:  make(map[string]time.Time),
	}
	rand.Shuffle(len(s.addrs), func(i, j int) { s.addrs[i], s.addrs[j] = s.addrs[j], s.addrs[i] })
	s.dial = plainDialer(opt.Dialer, opt.TLSConfig)
	return s, cfg, nil
}

// serverOptions returns what opt says of the client itself.
func (s *sentinels) serverOptions() *redis.Options {
	o := &redis.Options{}
	copyFields(o, s.opt)
	o.Addr = s.opt.MasterName
	o.Dialer = s.dialServer
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled} // as go-redis has it
	return o
}

// clusterOptions returns what opt says of a client for the master and its replicas.
func (s *sentinels) clusterOptions() *redis.ClusterOptions {
	o := &redis.ClusterOptions{}
	copyFields(o, s.opt)
	o.ClusterSlots = s.slots
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled} // as go-redis has it
	if db := s.opt.DB; db != 0 {
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			if err := cn.Select(ctx, db).Err(); err != nil {
				return err
			}
			if s.opt.OnConnect != nil {
				return s.opt.OnConnect(ctx, cn)
			}
			return nil
		}
	}
	return o
}

// slots describes the deployment as a cluster of one shard.
func (s *sentinels) slots(ctx context.Context) ([]redis.ClusterSlot, error) {
	s.forget()
	master, err := s.where(ctx)
	if err != nil {
		return nil, err
	}
	replicas, err := s.replicas(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(replicas)
	all := []redis.ClusterNode{{Addr: master}}
	for _, addr := range replicas {
		if addr != master {
			all = append(all, redis.ClusterNode{Addr: addr})
		}
	}
	return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: all}}, nil
}

// dialServer is the Dialer of the client: whatever addr is, it dials the server
// that the sentinels name.
func (s *sentinels) dialServer(ctx context.Context, network, _ string) (net.Conn, error) {
	addr, err := s.where(ctx)
	if err != nil {
		return nil, err
	}
	return s.dial(ctx, network, addr)
}

// where returns the server to dial. It asks the sentinels, once for all who want to
// know, unless they have been asked since forget was last called.
func (s *sentinels) where(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		switch {
		case s.clients == nil:
			s.mu.Unlock()
			return "", redis.ErrClosed
		case s.target != "":
			defer s.mu.Unlock()
			return s.target, nil
		case s.asking == nil:
			asking := make(chan struct{})
			s.asking = asking
			s.mu.Unlock()
			addr, err := s.find(ctx)
			s.mu.Lock()
			s.asking = nil
			if err == nil {
				s.target = addr
			}
			s.mu.Unlock()
			close(asking)
			return addr, err
		}
		asking := s.asking
		s.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// last returns the server that is dialed now.
func (s *sentinels) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// forget has the sentinels asked again before the next dial, another one of them
// first: the one that was asked may be cut off from the rest.
func (s *sentinels) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = ""
	if len(s.addrs) > 1 {
		s.addrs = append(s.addrs[1:len(s.addrs):len(s.addrs)], s.addrs[0])
	}
}

// find asks for the server that the client is meant for.
func (s *sentinels) find(ctx context.Context) (string, error) {
	if s.opt.ReplicaOnly {
		replicas, err := s.replicas(ctx)
		if err == nil && len(replicas) > 0 {
			return replicas[rand.IntN(len(replicas))], nil
		}
	}
	addr, err := askAny(ctx, s, s.askMaster)
	if err != nil {
		return "", err
	}
	if s.wasMaster(addr) { // a sentinel that has not heard of the failover yet?
		if newer, err := askAny(ctx, s, func(ctx context.Context, c *redis.SentinelClient) (string, error) {
			addr, err := s.askMaster(ctx, c)
			if err == nil && s.wasMaster(addr) {
				err = errors.New("sentinel names a former master")
			}
			return addr, err
		}); err == nil {
			addr = newer
		}
	}
	s.mu.Lock()
	s.becomesLocked(addr)
	s.mu.Unlock()
	return addr, nil
}

// becomesLocked notes who is the master.
func (s *sentinels) becomesLocked(addr string) {
	if s.master != "" && s.master != addr {
		s.former[s.master] = time.Now().Add(formerMaster)
	}
	delete(s.former, addr)
	s.master = addr
}

// wasMaster reports whether addr was the master until a short time ago.
func (s *sentinels) wasMaster(addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.former[addr]
	if ok && time.Now().After(until) {
		delete(s.former, addr)
		return false
	}
	return ok
}

func (s *sentinels) askMaster(ctx context.Context, c *redis.SentinelClient) (string, error) {
	addr, err := c.GetMasterAddrByName(ctx, s.opt.MasterName).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", fmt.Errorf("sentinel knows no master named %q", s.opt.MasterName)
	case err != nil:
		return "", err
	case len(addr) != 2 || slices.Contains(addr, ""):
		return "", errors.New("sentinel does not answer with an address where the master is")
	}
	return net.JoinHostPort(addr[0], addr[1]), nil
}

// replicas returns the addresses of the replicas that are up.
func (s *sentinels) replicas(ctx context.Context) ([]string, error) {
	list, err := askAny(ctx, s, func(ctx context.Context, c *redis.SentinelClient) ([]map[string]string, error) {
		return c.Replicas(ctx, s.opt.MasterName).Result()
	})
	if err != nil {
		return nil, err
	}
	up, cutOff := []string(nil), []string(nil)
	for _, r := range list {
		flags := strings.Split(r["flags"], ",")
		switch addr := net.JoinHostPort(r["ip"], r["port"]); {
		case r["ip"] == "", r["port"] == "", slices.Contains(flags, "s_down"), slices.Contains(flags, "o_down"):
		case slices.Contains(flags, "disconnected"):
			cutOff = append(cutOff, addr)
		default:
			up = append(up, addr)
		}
	}
	if len(up) == 0 && s.opt.UseDisconnectedReplicas {
		return cutOff, nil
	}
	return up, nil
}

// askAny puts a question to the first sentinel and, when it fails or is slow to
// answer, to the others as well. The first answer counts, and who gave it is asked
// first next time.
func askAny[T any](ctx context.Context, s *sentinels, ask func(context.Context, *redis.SentinelClient) (T, error)) (T, error) {
	var none T
	if s.none() {
		return none, errNoSentinels
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	s.mu.Lock()
	if s.clients == nil {
		s.mu.Unlock()
		return none, redis.ErrClosed
	}
	clients := make([]*redis.SentinelClient, len(s.addrs))
	addrs := slices.Clone(s.addrs)
	for i, addr := range addrs {
		clients[i] = s.clientLocked(addr)
	}
	s.mu.Unlock()

	type answer struct {
		from  string
		value T
		err   error
	}
	answers := make(chan answer, len(clients))
	asked := 0
	put := func() {
		i := asked
		asked++
		s.spawn(func() {
			value, err := ask(ctx, clients[i])
			answers <- answer{addrs[i], value, err}
		}, func() { answers <- answer{addrs[i], none, redis.ErrClosed} })
	}
	put()
	askTheRest := func() {
		for asked < len(clients) {
			put()
		}
	}
	slow := time.NewTimer(sentinelPatience)
	defer slow.Stop()
	var errs []error
	for {
		select {
		case <-slow.C:
			askTheRest()
		case a := <-answers:
			errs = append(errs, a.err)
			if a.err == nil {
				s.prefer(a.from)
				return a.value, nil
			}
			askTheRest()
			if len(errs) == len(clients) {
				return none, fmt.Errorf("no sentinel answers: %w", errors.Join(errs...))
			}
		}
	}
}

// spawn runs f on a goroutine that close waits for, or instead of it otherwise.
func (s *sentinels) spawn(f, otherwise func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients == nil {
		otherwise()
		return
	}
	s.questions.Go(f)
}

// prefer has a sentinel asked first.
func (s *sentinels) prefer(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.addrs, addr); i > 0 {
		s.addrs = append([]string{addr}, slices.Delete(slices.Clone(s.addrs), i, i+1)...)
	}
}

// clientLocked returns the client for a sentinel.
func (s *sentinels) clientLocked(addr string) *redis.SentinelClient {
	if c := s.clients[addr]; c != nil {
		return c
	}
	c := redis.NewSentinelClient(&redis.Options{
		Addr: addr, ClientName: s.opt.ClientName, OnConnect: s.opt.OnConnect,
		Username: s.opt.SentinelUsername, Password: s.opt.SentinelPassword,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := s.dial(ctx, network, addr)
			if err != nil {
				return &standin{err: err}, nil
			}
			sys.Tune(sys.Innermost(nc), liveness(s.timeout))
			return nc, nil
		},
		DialTimeout: s.timeout, ReadTimeout: s.timeout, WriteTimeout: s.timeout, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 2, ReadBufferSize: 4096, WriteBufferSize: 4096,
		DisableIdentity: s.opt.DisableIdentity, IdentitySuffix: s.opt.IdentitySuffix,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	s.clients[addr] = c
	return c
}

// errNoSentinels has go-redis's words.
var errNoSentinels = errors.New("redis: no sentinels configured")

// none reports whether there is no sentinel to ask.
func (s *sentinels) none() bool { return len(s.opt.SentinelAddrs) == 0 }

// listen has a goroutine hear from the sentinels, at least once an interval, until ctx ends,
// and calls moved when the master is another than before.
func (s *sentinels) listen(ctx context.Context, spawn func(func()) bool, interval time.Duration, moved func(addr string)) {
	if !s.none() {
		spawn(func() { s.hearAll(ctx, interval, moved) })
	}
}

// hearAll hears from the sentinels, from one at a time, until ctx ends.
func (s *sentinels) hearAll(ctx context.Context, interval time.Duration, moved func(addr string)) {
	for ctx.Err() == nil {
		s.mu.Lock()
		if s.clients == nil {
			s.mu.Unlock()
			return
		}
		addr := s.addrs[0]
		c := s.clientLocked(addr)
		s.mu.Unlock()
		s.hear(ctx, c, interval, moved)
		s.mu.Lock()
		if s.addrs[0] == addr {
			s.addrs = append(s.addrs[1:len(s.addrs):len(s.addrs)], addr)
		}
		s.mu.Unlock()
		timer := time.NewTimer(early(sentinelPause))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// hear subscribes to one sentinel and returns when it cannot be heard any more.
func (s *sentinels) hear(ctx context.Context, c *redis.SentinelClient, interval time.Duration, moved func(addr string)) {
	const topic = "+switch-master"
	sub := c.Subscribe(ctx, topic)
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })()
	defer func() { _ = sub.Close() }()
	silent := false
	for {
		msg, err := sub.ReceiveTimeout(ctx, max(interval, s.timeout))
		if err != nil {
			if !sys.IsTimeout(err) || silent || sub.Ping(ctx) != nil {
				return
			}
			silent = true // the PING is to be answered
			s.check(ctx, moved)
			continue
		}
		silent = false
		switch msg := msg.(type) {
		case *redis.Subscription: // what was missed until now is asked for
			s.check(ctx, moved)
			s.discover(ctx, c)
		case *redis.Message: // <name> <old ip> <old port> <new ip> <new port>
			if words := strings.Fields(msg.Payload); len(words) == 5 && words[0] == s.opt.MasterName {
				s.learn(net.JoinHostPort(words[3], words[4]), moved)
			}
		}
	}
}

// check asks where the master is, in case that was missed.
func (s *sentinels) check(ctx context.Context, moved func(addr string)) {
	if addr, err := askAny(ctx, s, s.askMaster); err == nil && !s.wasMaster(addr) {
		s.learn(addr, moved)
	}
}

// learn notes where the master is and calls moved when that is news.
func (s *sentinels) learn(addr string, moved func(addr string)) {
	s.mu.Lock()
	news := s.master != "" && s.master != addr
	s.becomesLocked(addr)
	if news {
		s.target = ""
		if !s.opt.ReplicaOnly {
			s.target = addr
		}
	}
	s.mu.Unlock()
	if news {
		moved(addr)
	}
}

// discover adds the sentinels that one of them knows.
func (s *sentinels) discover(ctx context.Context, c *redis.SentinelClient) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	others, err := c.Sentinels(ctx, s.opt.MasterName).Result()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range others {
		addr := net.JoinHostPort(o["ip"], o["port"])
		if o["ip"] != "" && o["port"] != "" && !slices.Contains(s.addrs, addr) {
			s.addrs = append(s.addrs, addr)
		}
	}
}

// close closes every connection to a sentinel, which ends every question.
func (s *sentinels) close() {
	s.mu.Lock()
	clients := s.clients
	s.clients = nil
	s.mu.Unlock()
	for _, c := range clients {
		_ = c.Close()
	}
	s.questions.Wait()
}
