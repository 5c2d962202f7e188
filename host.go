package redial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/wire"
)

// What redial believes of go-redis's insides and cannot ask it. host_test.go has a
// test for each belief, which fails with a sentence when another version breaks it;
// where a belief fails in a program, what is claimed of a command is less, not wrong.

// origin says what stands between a part of our hook and the connection.
type origin uint8

const (
	foreignHook origin = iota // a hook of the caller, which may do anything
	pooledCall                // go-redis, with a connection for this call alone
	blockCall                 // the same, of a transaction: that it is one shows in no command
	clusterCall               // the same, of a node: replies are read by the code for clusters
	sharedCall                // go-redis, in a way that may put many calls on one connection
	routedCall                // go-redis's way to find a node, whose own hook has labelled what failed
)

// alone reports whether the call has a connection for itself.
func (o origin) alone() bool { return o == pooledCall || o == blockCall || o == clusterCall }

const goRedis = "github.com/redis/go-redis/v9."

// functions are those of go-redis that take a connection for the call alone. Any other
// that is not a hook may be one of the full-duplex engine's, where a failure of one
// command says nothing of when it was written.
var functions = map[string]origin{
	"(*baseClient).process-fm":                     pooledCall,
	"(*baseClient).processPipeline-fm":             pooledCall,
	"(*baseClient).processTxPipeline-fm":           blockCall,
	"(*AutoPipeliner).dispatchCmds.func1":          pooledCall,
	"(*AutoPipeliner).runOutsidePipeline.func1.1":  pooledCall,
	"(*apShard).flushBatchSlice.func1.1":           pooledCall,
	"(*ClusterClient).processPipelineNode.func1":   clusterCall,
	"(*ClusterClient).processTxPipelineNode.func1": clusterCall,
}

// originOf tells by the name of the function that a hook was given as next.
func originOf(next any) origin {
	pc := reflect.ValueOf(next).Pointer()
	if from, ok := origins.Load(pc); ok {
		return from.(origin)
	}
	from := foreignHook
	if name, ok := strings.CutPrefix(nameOf(next), goRedis); ok {
		from = sharedCall
		if known, ok := functions[name]; ok {
			from = known
		}
	}
	origins.Store(pc, from)
	return from
}

var origins sync.Map // by the address of a function; functions are few

// nameOf returns the name of a function, "" when it has none.
func nameOf(f any) string {
	if f := runtime.FuncForPC(reflect.ValueOf(f).Pointer()); f != nil {
		return f.Name()
	}
	return ""
}

// isHostDialer reports whether a dialer is go-redis's own, which it puts into the options of
// a client that has none.
func isHostDialer(dial dialFunc) bool {
	name, ok := strings.CutPrefix(nameOf(dial), goRedis)
	return ok && strings.Contains(name, "NewDialer.")
}

// isBarredByCache reports whether go-redis rejects cmd, before it looks for a connection,
// on a client with client-side caching, because it would change what a connection is
// told to track. There is no point in waiting for the link before that is said.
func isBarredByCache(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "client", "select", "auth", "hello", "reset", "subscribe", "psubscribe", "ssubscribe":
		return true
	}
	return false
}

// isReply reports whether err is an answer of the server.
func isReply(err error) bool {
	switch err {
	case nil:
		return false
	case redis.Nil:
		return true
	}
	var re redis.Error
	return errors.As(err, &re) && !isHeld(err) // by a reply to another command, perhaps
}

// isHeld reports whether err is go-redis's word that a connection which the caller
// holds, as Conn and Tx do, was broken before.
func isHeld(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		switch err.(type) {
		case *wire.Error, *wire.SealedError, redis.Error: // which have their text from elsewhere
			return false
		}
		if strings.HasPrefix(err.Error(), "redis: Conn is in a bad state") {
			return true
		}
	}
	return false
}

// isUnsupported reports whether err is go-redis's word that the server does not speak the
// protocol which the options demand.
func isUnsupported(err error) bool {
	return err != nil && strings.HasPrefix(fmt.Sprint(err), "failed to enable maintnotifications: ")
}

// isUnrouted reports whether err is go-redis's word that it found no node for a
// command. It may be one of the caller's, whose words are not to be had.
func isUnrouted(err error) bool {
	switch fmt.Sprint(err) {
	case "redis: cluster has no nodes", "redis: all ring shards are down":
		return true
	}
	return false
}

// isGarbled reports whether err is go-redis's own and says that it could not make
// sense of a reply.
func isGarbled(err error) bool {
	if errors.As(err, new(wordOfOnConnect)) {
		return false
	}
	what, ours := strings.CutPrefix(err.Error(), "redis: ")
	return ours && slices.ContainsFunc(garbles, func(begins string) bool { return strings.HasPrefix(what, begins) })
}

// ofOnConnect returns the error of an OnConnect for go-redis, which takes off what it is wrapped
// in. What looks like go-redis's word about a reply then is told from one.
func ofOnConnect(err error) error {
	shown := cmp.Or(errors.Unwrap(err), err)
	if shown == nil || wire.ErrorOf(shown) != nil || isReply(shown) || !isGarbled(shown) {
		return err
	}
	return wordOfOnConnect{shown}
}

// wordOfOnConnect is an error which go-redis does not unwrap, and others do.
type wordOfOnConnect struct{ error }

func (w wordOfOnConnect) Is(target error) bool { return errors.Is(w.error, target) }
func (w wordOfOnConnect) As(target any) bool   { return errors.As(w.error, target) }

// garbles are how go-redis begins what it says of a reply that it cannot read.
var garbles = []string{
	"can't parse ", "can't read ", "got ", "unexpected ", "invalid ", "expected ", "the length of ",
	"function list unexpected ", "buffer too small", "connection unusable (reply stream",
}

// atMostOnce keeps go-redis from sending a pipeline again. It would do so when the
// first command is answered by certain refusals, although the others have run.
func atMostOnce(cmds []redis.Cmder) []redis.Cmder {
	for i, cmd := range cmds {
		if len(cmds) > 1 && cmd.Name() != "himport" { // which go-redis must recognize
			once := slices.Clone(cmds)
			once[i] = noRetry{cmd}
			if own := gateOf(cmd); own != nil {
				once[i] = noRetryDeferred{cmd, itsGate{own}}
			}
			return once
		}
	}
	return cmds
}

// plainCommands undoes atMostOnce for hooks of the caller: when go-redis sends commands
// on to another node, it sends what it was given.
func plainCommands(cmds []redis.Cmder) {
	for i := range cmds {
		cmds[i] = plainCommand(cmds[i])
	}
}

// plainCommand returns the command of the caller for which another stands.
func plainCommand(cmd redis.Cmder) redis.Cmder {
	for {
		switch stand := cmd.(type) {
		case noRetry:
			cmd = stand.Cmder
		case noRetryDeferred:
			cmd = stand.Cmder
		case *onceCmd:
			cmd = stand.Cmder
		case unsplit:
			cmd = stand.Cmder
		default:
			return cmd
		}
	}
}

// onceCmd stands for a command while it is written: go-redis writes the arguments of this
// one, and reads the reply into that of the caller.
type onceCmd struct {
	redis.Cmder
	args []any
}

func (c *onceCmd) Args() []any { return c.args }

// NoRetry says that the command must not be sent again by go-redis, nor be answered from
// a cache.
func (c *onceCmd) NoRetry() bool { return true }

// unsplit stands for a command, which go-redis might send to a replica, or parts of it to
// several nodes of a cluster, on its way to one master. It looks like SET.
type unsplit struct{ redis.Cmder }

func (unsplit) Name() string     { return "set" }
func (unsplit) FullName() string { return "set" }
func (unsplit) NoRetry() bool    { return true }

// contextOf returns the context that a command of go-redis was made with, or nil. An
// auto-pipeline keeps it nowhere else.
func contextOf(cmd redis.Cmder) context.Context {
	f := contexts.in(cmd)
	if !f.IsValid() {
		return nil
	}
	ctx, _ := f.Interface().(context.Context)
	return ctx
}

// hidden is a field that commands of go-redis have, and do not export.
type hidden struct {
	name string
	at   sync.Map // *reflect.StructField by reflect.Type, of commands; they are few
}

var contexts, gates = hidden{name: "ctx"}, hidden{name: "ready"}

// in returns the field of a command, the zero Value for one that is none of go-redis's.
func (h *hidden) in(cmd redis.Cmder) reflect.Value {
	v := reflect.ValueOf(cmd)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return reflect.Value{}
	}
	found, ok := h.at.Load(v.Type())
	if !ok {
		f := new(reflect.StructField)
		if t := v.Type().Elem(); t.Kind() == reflect.Struct && t.PkgPath()+"." == goRedis {
			*f, _ = t.FieldByName(h.name)
		}
		found, _ = h.at.LoadOrStore(v.Type(), f)
	}
	f := found.(*reflect.StructField)
	if f.Index == nil {
		return reflect.Value{}
	}
	at := v.UnsafePointer() // where it is if it is the first of all, which costs no search
	if slices.Max(f.Index) > 0 {
		at = v.Elem().FieldByIndex(f.Index).Addr().UnsafePointer()
	}
	return reflect.NewAt(f.Type, at).Elem()
}

// insideSetUp reports whether go-redis sets up a connection in the goroutine that asks. For a
// subscription it does so with the context that the caller has subscribed with.
func insideSetUp() bool { return inside(goRedis + "(*baseClient).initConn") }

// insideHeartbeat reports whether it finds out there which shards of a ring are up.
func insideHeartbeat() bool { return inside(goRedis + "(*ringSharding).Heartbeat") }

// insideMove reports whether go-redis dials there because the server of a connection moves, to
// another address or, once that leads elsewhere, to its own. It has it take the place of the
// other, and would not close it if it were none.
func insideMove() bool {
	return inside(strings.TrimSuffix(goRedis, ".") + "/maintnotifications.(*handoffWorkerManager).performHandoffInternal")
}

// inside reports whether a function is at work in the goroutine that asks.
func inside(function string) bool {
	pcs := make([]uintptr, stackDepth)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for {
		f, more := frames.Next()
		if f.Function == function {
			return true
		}
		if !more {
			return false
		}
	}
}

// noRetry is a command that go-redis must not send again.
type noRetry struct{ redis.Cmder }

func (noRetry) NoRetry() bool { return true }

// noRetryDeferred is the same for one of a deferred auto-pipeline. When that is sent on to
// another node, go-redis asks it for its gate, and marks the goroutine that must not wait there.
type noRetryDeferred struct {
	redis.Cmder
	itsGate
}

func (noRetryDeferred) NoRetry() bool { return true }

// itsGate answers that question, which nothing can but a command of go-redis's own. All else
// is for the Cmder to say, since its methods are less deep.
type itsGate struct{ *redis.Cmd }

// gateOf returns a command that is done when cmd is, of a deferred auto-pipeline, and else nil.
func gateOf(cmd redis.Cmder) *redis.Cmd {
	from := gates.in(cmd)
	if !from.IsValid() || from.IsZero() {
		return nil
	}
	own := new(redis.Cmd)
	to := gates.in(own)
	if !to.IsValid() || to.Type() != from.Type() {
		return nil
	}
	to.Set(from)
	return own
}

// readCmd stands for a command while its reply is read.
type readCmd struct {
	redis.Cmder
	done     bool
	answered bool
}

func (c *readCmd) NoRetry() bool { return true }

// SetErr is called by go-redis when it has read the reply, or failed to.
func (c *readCmd) SetErr(err error) {
	if c.done {
		return
	}
	c.done = true
	c.answered = err == nil || isReply(err)
	c.Cmder.SetErr(err)
}

// ownOptions returns a copy of opt under which go-redis leaves dialing, retrying and
// deadlines to redial.
func ownOptions(opt *redis.Options, dial dialFunc) *redis.Options {
	own := *opt
	own.Addr = addrOf(opt.Addr)
	own.Dialer = dial
	own.MaxRetries = -1
	own.DialerRetries = 1
	own.ContextTimeoutEnabled = true // a deadline that the socket ignores is none
	own.MaintNotificationsConfig = withoutLookup(&own)
	if onConnect := opt.OnConnect; onConnect != nil {
		own.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			ctx = context.WithValue(ctx, onceKey{}, nil) // what it sends is nobody's piece of work
			return ofOnConnect(onConnect(context.WithValue(unrouted(ctx), ctxNested, true), cn))
		}
	}
	return &own
}

// movesUnnamed reports whether the caller wants a server that moves to say when, and not where to:
// its address leads there by then, and what was connected before does not.
func movesUnnamed(opt *redis.Options) bool {
	conf := opt.MaintNotificationsConfig
	return conf != nil && conf.Mode != maintnotifications.ModeDisabled && conf.EndpointType == maintnotifications.EndpointTypeNone
}

// withoutLookup returns the configuration of maintenance notifications with which
// go-redis does not resolve the name of the server, for up to two seconds, when it
// builds a client. What it would want to know is by which kind of address the server
// is to tell where it moves; the answer here is that the name will lead there.
func withoutLookup(opt *redis.Options) *maintnotifications.Config {
	conf := opt.MaintNotificationsConfig
	if conf != nil && conf.Mode == maintnotifications.ModeDisabled {
		return conf
	}
	host := hostOf(opt.Addr)
	if host == "" || net.ParseIP(host) != nil {
		return conf
	}
	own := maintnotifications.Config{}
	if conf != nil {
		own = *conf
	}
	if own.EndpointType != "" && own.EndpointType != maintnotifications.EndpointTypeAuto {
		return conf
	}
	own.EndpointType = maintnotifications.EndpointTypeNone
	return &own
}

// hostOf returns an address without its port, if it has one.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// ledOptions returns what opt says of the client itself, but for the Dialer, as go-redis has it.
func ledOptions(opt *redis.FailoverOptions) *redis.Options {
	o := &redis.Options{}
	copyFields(o, opt)
	o.Addr, o.FailingTimeoutSeconds = "FailoverClient", 0
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o
}

// shardOptions returns what opt says of a client for the master and its
// replicas, but for ClusterSlots.
func shardOptions(opt *redis.FailoverOptions) *redis.ClusterOptions {
	o := &redis.ClusterOptions{}
	copyFields(o, opt)
	o.ReadOnly = opt.ReplicaOnly
	o.MaxRedirects, o.MaxRetries = opt.MaxRetries, 0
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled} // as go-redis has it
	if db, onConnect := opt.DB, opt.OnConnect; db != 0 {
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			if err := cn.Select(ctx, db).Err(); err != nil {
				return err
			}
			if onConnect != nil {
				return onConnect(ctx, cn)
			}
			return nil
		}
	}
	return o
}

// nodeAddrOf returns what a cluster client makes of the address of a node that origin names,
// which is the address of a node, or "" for ClusterSlots: it takes a loopback address for one
// that means the host of whoever has named it, unless that is at such an address itself, and
// the port 0 for the port of that.
func nodeAddrOf(addr, origin string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	by, at, _ := net.SplitHostPort(origin)
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() && !isLoopback(by) {
		host = by
	}
	if port == "0" && at != "" {
		port = at
	}
	return net.JoinHostPort(host, port)
}

// isLoopback reports whether go-redis takes a host for the one it runs on.
func isLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback()
	}
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".docker.internal")
}

// pool is the pool of connections that go-redis keeps for a link. It is not known before
// go-redis has built the client, which may dial before that.
type pool struct{ known atomic.Pointer[poolOf] }

type poolOf struct {
	warm func(ctx context.Context, lost int) bool
	gone func() bool
}

// is says which client the pool is that of. inflight is how many commands it has to do,
// timeout what a connection may take to answer.
func (p *pool) is(rdb *redis.Client, inflight *atomic.Int64, timeout time.Duration, f manners) {
	p.known.Store(&poolOf{warm: warmer(rdb, inflight, timeout, f), gone: closedCheck(rdb)})
}

// manners is how connections to a server are made and asked for a sign of life, see
// wire.Fleet.
type manners interface {
	Declined() bool
	Question() []any
}

// warm reports false as long as the client is not known, and when a connection broke that
// go-redis gave for a good one.
func (p *pool) warm(ctx context.Context, lost int) bool {
	known := p.known.Load()
	return known != nil && known.warm(ctx, lost)
}

func (p *pool) gone() bool {
	known := p.known.Load()
	return known != nil && known.gone()
}

// warmer returns a function that has the pool replace some of the connections that it
// has lost in an outage: callers with short deadlines take a finished connection, but
// none of them may have the time to make one. Up to MinIdleConns it replaces them all,
// since go-redis counts connections that died in the pool as idle until somebody asks
// for them.
func warmer(rdb *redis.Client, inflight *atomic.Int64, timeout time.Duration, f manners) func(ctx context.Context, lost int) bool {
	opt := rdb.Options()
	full := func() bool { // then there are connections, or callers who make them
		s := rdb.PoolStats()
		// Signed, for go-redis counts as idle what it is still dialing.
		return int(inflight.Load()) >= opt.PoolSize || int(s.TotalConns)-int(s.IdleConns) >= opt.PoolSize
	}
	least := min(opt.MinIdleConns, max(opt.PoolSize/2, 1)) // leave room for callers
	// No hooks: nobody must see this. They are made now, while nobody else uses the client:
	// go-redis writes to what it copies. In mode auto it asks for notifications until a
	// server has none, which copies do not hear of.
	plain := rdb.WithTimeout(timeout)
	declining := plain
	if conf := opt.MaintNotificationsConfig; conf != nil && conf.Mode == maintnotifications.ModeAuto {
		declining = rdb.WithTimeout(timeout)
		declining.Options().MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	}
	return func(ctx context.Context, lost int) bool {
		plain := plain
		if f.Declined() {
			plain = declining
		}
		ctx, cancel := context.WithTimeout(ctx, warmWithin)
		defer cancel()
		held := make([]*redis.Conn, 0, max(least, 0))
		defer func() {
			for _, cn := range held {
				_ = cn.Close() // back to the pool
			}
		}()
		for i := range max(least, min(lost, warmConns)) {
			if full() {
				return true
			}
			cn := plain.Conn()
			err := cn.Do(ctx, f.Question()...).Err()
			if i < least {
				held = append(held, cn)
			} else {
				_ = cn.Close() // for whoever waits, or else for the next round
			}
			if err != nil {
				return false // the next outage, or a connection of the last one
			}
		}
		return true
	}
}

// addrOf returns the address that go-redis takes addr for.
func addrOf(addr string) string { return cmp.Or(addr, "localhost:6379") }

// tryOptions panics when go-redis would, later, when it builds the client of a node.
func tryOptions(opt any) {
	o := &redis.Options{}
	copyFields(o, opt)
	o.Addr = ":0"
	o.MinIdleConns = 0
	_ = redis.NewClient(o).Close()
}

// copyFields sets the fields of dst, a struct of options, that src has as well.
func copyFields(dst, src any) {
	d, s := reflect.ValueOf(dst).Elem(), reflect.ValueOf(src).Elem()
	for i := range s.NumField() {
		if f := s.Type().Field(i); f.IsExported() {
			if to := d.FieldByName(f.Name); to.IsValid() && to.Type() == f.Type {
				to.Set(s.Field(i))
			}
		}
	}
}

// What go-redis says of commands that it does not send.

// rejections are the errors of go-redis of which none of the commands they are for was
// sent.
var rejections = []error{
	// An auto-pipeline sets these on commands that it has not handed to a batch, or on
	// batches that it has looked at and not begun with.
	redis.ErrAutoPipelineQueueFull, redis.ErrAutoPipelineTimeout, redis.ErrSubmitBlockingFace,
	redis.ErrFDPipelineUnavailable, redis.ErrFDPipelineDiverts, redis.ErrFDPipelineSpansEngines, redis.ErrFDPipelineTooLarge,
	redis.ErrRingAutoPipelineUnsupported,
	redis.ErrHotKeysNoMetrics,
	// The keys of a transaction belong to several nodes; servers have the same words.
	redis.ErrCrossSlot,
	// A key that was watched has changed, so EXEC has run nothing.
	redis.TxFailedErr,
}

// rejected reports whether go-redis says, with err, that it has sent nothing.
func rejected(err error) bool {
	if err == nil {
		return false
	}
	if slices.ContainsFunc(rejections, func(r error) bool { return errors.Is(err, r) }) {
		return true
	}
	for ; err != nil; err = errors.Unwrap(err) {
		if !isReply(err) && rejectedInWords(err.Error()) {
			return true
		}
	}
	return false
}

// rejectedInWords knows the errors that go-redis does not export.
func rejectedInWords(text string) bool {
	switch text {
	case "redis: cluster has no nodes", "redis: all ring shards are down", "redis: no sentinels configured",
		"redis: Watch requires at least one key", "redis: Watch requires all keys to be in the same slot",
		"redis: Watch requires at least one shard", "redis: Watch requires all keys to be in the same shard",
		"redis: AutoPipeliner.Do requires at least one argument":
		return true
	}
	return strings.HasPrefix(text, "redis: cannot pipeline command ") ||
		strings.HasPrefix(text, "redis: ") && strings.HasSuffix(text, " when client-side caching is enabled")
}

// How to find out that go-redis has closed a client. It tells nobody, and has no question
// for it; but what a closed client does not do it refuses before anything else.

// noOptions are options of an auto-pipeline that cannot be had: the answer is that the
// client is closed, or that they are invalid.
var noOptions = &redis.AutoPipelineOptions{MaxBatchSize: -1}

// closedCheck returns a function that reports whether a client was closed, by its owner
// or, if it is that of a node, by go-redis, which does not need it any more. It leaves no
// trace in pools or metrics of a client that was not.
func closedCheck(rdb *redis.Client) func() bool {
	plain := rdb.WithTimeout(time.Second) // no hooks: nobody must see this
	plain.Options().Limiter = nil         // nor this
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return func() bool {
		// First it begins to close, which may take its auto-pipelines a while, then there
		// are no more connections.
		_, err := plain.AutoPipelineWithOptions(noOptions)
		return err == redis.ErrClosed && plain.Ping(ctx).Err() == redis.ErrClosed
	}
}

// clusterClosed returns a function that reports whether a cluster client was closed. Its
// nodes may still be open.
func clusterClosed(rdb *redis.ClusterClient) func() bool {
	return func() bool {
		_, err := rdb.AutoPipelineWithOptions(noOptions)
		return err == redis.ErrClosed
	}
}

// ringClosed returns a function that reports whether a ring was closed.
func ringClosed(rdb *redis.Ring) func() bool {
	return func() bool {
		_, err := rdb.GetShardClientForKey("")
		return err == redis.ErrClosed
	}
}

// routedKey is the key under which a context says that our outer hook has sent a command
// on its way to a node.
type routedKey struct{}

// unrouted returns ctx without that.
func unrouted(ctx context.Context) context.Context {
	if ctx.Value(routedKey{}) == nil {
		return ctx
	}
	return context.WithValue(ctx, routedKey{}, nil)
}
