package redial

// What runs once, and what goes out: the script in place of a command that has an id, and
// what its reply means. Who has one, and where it may go, is in once.go.
//
// The translation is the last thing before go-redis, so that hooks of the caller, on
// clients and nodes, see the caller's own command. A stand-in writes the script and what it
// wants to know; go-redis decodes the reply into the command that the caller holds.

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// oncePrefix begins the names of all records.
const oncePrefix = "redial:once:"

// onceScript runs a command if there is no record of its id, and returns what the record
// holds if there is. KEYS are those of the command, then, of a later command of a
// transaction, the record of its first one, and the record of this one. ARGV are for how
// long the record lives, in milliseconds, the sum of what the id stands for, flags, and the
// command.
//
// Servers without cmsgpack, those of tests in memory, have it written out here.
//
// The record is set before the command runs, so that whatever forbids it does so while
// nothing has happened. After an error reply it is emptied, for which no other right is
// needed. What a server says of an unknown command, or of a wrong number of arguments, in a
// script it says in other words than outside. Flags: 3, to run it as RESP3; n, what is returned goes out as RESP3; c and h, the
// first key, or a field of it, holds the integer that is returned, which goes out as a string
// if it is no double; i, there are integers inside of the reply; d, g and s, it is one of
// doubles, of pairs of them, or of streams by name; e, error replies are recorded; u, there
// is the record of a first command.
const onceScript = `local there, packer = pcall(function() return cmsgpack end)
local record, ttl, sum, flags = KEYS[#KEYS], ARGV[1], ARGV[2], ARGV[3]
local function has(flag) return string.find(flags, flag, 1, true) end
local function bad(reply) return type(reply) == 'table' and reply['err'] end
local function look(name)
  local kept = redis.pcall('GET', name)
  if bad(kept) and string.sub(kept['err'], 1, 9) == 'WRONGTYPE' then return '-' end
  return kept
end
local function keep(value, time) return redis.pcall('SET', record, value, 'PX', time) end
local function is(kept) return string.sub(kept, 1, #sum) == sum end
local function rounded(value)
  if type(value) == 'number' then return value >= 9007199254740992 or value <= -9007199254740992 end
  if type(value) == 'table' then
    for _, of in pairs(value) do if rounded(of) then return true end end
  end
  return false
end
local function pack(value)
  if there and packer then return packer.pack(value) end
  local of = type(value)
  if of == 'string' then return 's' .. #value .. ':' .. value end
  if of == 'number' then return 'n' .. string.format('%.17g', value) .. ':' end
  if of == 'boolean' then return value and 't' or 'f' end
  if of ~= 'table' then return 'z' end
  local all = {}
  for key, of in pairs(value) do all[#all + 1] = pack(key) .. pack(of) end
  return 'm' .. #all .. ':' .. table.concat(all)
end
local function open(text, at)
  local of = string.sub(text, at, at)
  if of == 't' then return true, at + 1 elseif of == 'f' then return false, at + 1 elseif of == 'z' then return nil, at + 1 end
  local colon = string.find(text, ':', at, true)
  local number = tonumber(string.sub(text, at + 1, colon - 1))
  at = colon + 1
  if of == 'n' then return number, at elseif of == 's' then return string.sub(text, at, at + number - 1), at + number end
  local all, key, value = {}, nil, nil
  for i = 1, number do
    key, at = open(text, at)
    value, at = open(text, at)
    all[key] = value
  end
  return all, at
end
local kept = look(record)
if bad(kept) then return kept end
if kept and kept ~= '' then
  if not is(kept) then return {err='REDIALONCE other'} end
  local how = string.sub(kept, #sum + 1, #sum + 1)
  if how == '?' then return {err='REDIALONCE lost'} end
  if how == '3' and redis.setresp then redis.setresp(3) end
  kept = string.sub(kept, #sum + 2)
  if there and packer then return packer.unpack(kept) end
  return (open(kept, 1))
end
if has('u') then
  local first = look(KEYS[#KEYS - 1])
  if bad(first) then return first end
  if not first or first == '' then return {err='REDIALONCE first'} end
  if not is(first) then return {err='REDIALONCE other'} end
end
local no = keep(sum .. '?', ttl)
if bad(no) then return no end
local how = '2'
if has('3') and redis.setresp then redis.setresp(3) how = '3' end
local reply = redis.pcall(unpack(ARGV, 4))
if bad(reply) then
  local text = reply['err']
  if string.find(text, 'Wrong number of args calling', 1, true) then
    text = "ERR wrong number of arguments for '" .. string.lower(ARGV[4]) .. "' command"
  elseif string.find(text, 'Unknown [%a ]*command called') then
    text = "ERR unknown command '" .. ARGV[4] .. "'"
  end
  reply = {err=text}
  if not has('e') then keep('', 1) return reply end
elseif (type(reply) == 'number' or has('i')) and rounded(reply) then
  local exact
  if has('c') then exact = redis.pcall('GET', KEYS[1])
  elseif has('h') then exact = redis.pcall('HGET', KEYS[1], ARGV[6]) end
  if type(exact) ~= 'string' then return {err='REDIALONCE lost'} end
  reply = exact
elseif type(reply) == 'table' and has('n') then
  local function double(text) return {double=tonumber(text)} end
  if has('d') then
    for i = 1, #reply do if reply[i] then reply[i] = double(reply[i]) end end
  elseif has('g') then
    for i = 1, #reply do if reply[i] then reply[i] = {double(reply[i][1]), double(reply[i][2])} end end
  elseif has('s') then
    local map = {}
    for i = 1, #reply do map[reply[i][1]] = reply[i][2] end
    reply = {map=map}
  end
end
no = keep(sum .. how .. pack(reply), ttl)
if bad(no) then return {err='REDIALONCE lost'} end
return reply`

var onceSHA = func() string {
	sum := sha1.Sum([]byte(onceScript))
	return hex.EncodeToString(sum[:])
}()

// What the script says by error replies.
const (
	onceOther = "REDIALONCE other"
	onceFirst = "REDIALONCE first" // the first command of the transaction has left no record
	onceLost  = "REDIALONCE lost"
)

// onceWay is how commands with ids are sent to one server.
type onceWay struct {
	ttl     time.Duration
	resp3   func() bool  // what the connections speak
	cluster *atomic.Bool // the record must be in the slot of the command's keys
	strays  bool         // keys are looked for on servers that do not have their records
}

func newOnceWay(cfg *config, resp3 func() bool, of neighbors) onceWay {
	w := onceWay{ttl: cfg.onceTTL, resp3: resp3, cluster: new(atomic.Bool), strays: of == shards}
	w.cluster.Store(of == cluster)
	return w
}

// neighbors says what other servers there are beside one.
type neighbors uint8

const (
	lone    neighbors = iota // or what becomes known by CROSSSLOT
	cluster                  // the keys of a slot move from node to node, and records with them
	shards                   // of a ring, which know nothing of each other
)

// record returns the name of the record of an id. In a cluster it shares the slot of key,
// unless it does by itself: what a client of one server writes without knowing that this
// is part of a cluster has the same name then.
func (w *onceWay) record(id onceID, key string, tagged bool) string {
	text := id.text
	if id.position >= 0 {
		text += ":" + strconv.Itoa(id.position)
	}
	slot := command.Slot(key)
	if !tagged || command.Slot(oncePrefix+text) == slot {
		return oncePrefix + text
	}
	tag := command.HashTag(key)
	if tag == "" || strings.Contains(tag, "}") {
		for n := 0; ; n++ { // few keys are like that
			if tag = strconv.Itoa(n); command.Slot(tag) == slot {
				break
			}
		}
	}
	return oncePrefix + "{" + tag + "}:" + text
}

// unitOf returns the commands of a transaction, as one server gets it, nil for another batch.
func unitOf(cmds []redis.Cmder) (unit []redis.Cmder) {
	if !command.HoldsMulti(cmds) {
		return nil
	}
	for _, cmd := range cmds {
		if !isPassing(cmd) {
			unit = append(unit, cmd)
		}
	}
	return unit
}

// sum identifies an id and what it stands for. Of a transaction that is all of it.
func (w *onceWay) sum(o *onces, cmd redis.Cmder, unit []redis.Cmder) (string, error) {
	cmds := unit
	if unit == nil {
		cmds = []redis.Cmder{cmd}
	}
	h := sha256.New()
	var n []byte
	number := func(i int) {
		n = binary.BigEndian.AppendUint64(n[:0], uint64(i))
		_, _ = h.Write(n) // a hash takes everything
	}
	id := o.ids[cmd]
	number(len(id.text)) // the record of another id may have the same name
	_, _ = h.Write([]byte(id.text))
	if unit == nil {
		number(id.position)
	}
	for _, cmd := range cmds {
		args, err := o.line(cmd)
		if err != nil {
			return "", refuse(cmd, whyUnsendable)
		}
		number(len(args))
		for i, text := range args {
			if i == 0 {
				text = strings.ToLower(text)
			}
			number(len(text))
			_, _ = h.Write([]byte(text))
		}
	}
	return string(h.Sum(nil)[:onceSum]), nil
}

// standIn returns what is sent in place of a command with an id. unit is the transaction
// that it is part of, nil if it is of none, and sum what identifies it, or else the command.
func (w *onceWay) standIn(o *onces, cmd redis.Cmder, unit []redis.Cmder, sum string, tagged, whole bool) (*onceCmd, error) {
	id := o.ids[cmd]
	args, at, reply, err := o.keys(cmd)
	if err != nil {
		return nil, err
	}
	out := make([]any, 0, len(args)+len(at)+onceExtra)
	if whole {
		out = append(out, "eval", onceScript)
	} else {
		out = append(out, "evalsha", onceSHA)
	}
	count := len(out)
	out = append(out, 0)
	for _, i := range at {
		out = append(out, args[i])
	}
	flags := onceFlags{w: w, cmd: cmd, reply: reply}
	key := args[at[0]] // whose slot the record shares
	if unit != nil {
		flags.unit = "e"
		first := unit[0]
		line, at, _, err := o.keys(first)
		if err != nil {
			return nil, err
		}
		if key = line[at[0]]; cmd != first {
			flags.unit += "u"
			out = append(out, w.record(o.ids[first], key, tagged))
		}
	}
	out = append(out, w.record(id, key, tagged))
	out[count] = len(out) - count - 1
	out = append(out, w.ttl.Milliseconds(), sum, flags)
	for _, arg := range args {
		out = append(out, arg)
	}
	o.goes()
	return &onceCmd{cmd, out}, nil
}

// keys returns what is written of a command, where its keys are in that, and what it replies.
func (o *onces) keys(cmd redis.Cmder) (args []string, at []int, reply command.Reply, err error) {
	at, reply, why := command.Keys(cmd)
	args, err = o.line(cmd)
	switch {
	case why != "": // a hook has made another command of it
		err = refuse(cmd, why)
	case err != nil:
		err = refuse(cmd, whyUnsendable)
	case at[len(at)-1] >= len(args):
		err = refuse(cmd, whyRemade)
	}
	return args, at, reply, err
}

// whyRemade is why a command is not sent that is not any more what it was.
const whyRemade = "a hook has made another command of it"

// onceFlags tells the script what is to be known of the reply, see onceScript. That is found
// out while it is written: only then there is a connection for sure, which has said HELLO.
type onceFlags struct {
	w     *onceWay
	cmd   redis.Cmder
	reply command.Reply
	unit  string // those of a transaction
}

// MarshalBinary returns what is written.
func (f onceFlags) MarshalBinary() ([]byte, error) { return []byte(f.ofReply() + f.unit), nil }

func (f onceFlags) ofReply() (flags string) {
	resp3 := f.w.resp3()
	if resp3 {
		flags = "n"
	}
	switch f.reply {
	case command.Plain:
		if resp3 {
			return "3n"
		}
	case command.Counter:
		return "c"
	case command.HashCounter:
		return "h"
	case command.Scores:
		return flags + "d"
	case command.Places:
		return flags + "g"
	case command.Counts:
		return flags + "i"
	case command.Streams:
		flags += "i"
		if _, any := f.cmd.(*redis.Cmd); any { // others keep the order of the streams
			return flags + "s"
		}
	}
	return flags
}

// lackOf says what is done about a reply to the script that is none to the command.
type lackOf uint8

const (
	lacksNothing lackOf = iota
	lacksScript         // the server does not have the script: nothing ran
	lacksSlot           // the record is in another slot than the keys: nothing ran
)

// lack looks at the reply to a command with an id.
func (w *onceWay) lack(err error, tagged bool) lackOf {
	if err == nil || !isReply(err) {
		return lacksNothing
	}
	switch text := err.Error(); {
	case strings.HasPrefix(text, "NOSCRIPT "):
		return lacksScript
	case strings.HasPrefix(text, "CROSSSLOT ") && !tagged:
		return lacksSlot
	}
	return lacksNothing
}

// read returns the error of a command with an id, for which the server replied with err,
// and makes an integer of what had to come as something else.
func (w *onceWay) read(cmd redis.Cmder, err error) error {
	if err == nil {
		exact(cmd)
		return nil
	}
	if _, ours := err.(*onceError); ours || !isReply(err) || err == redis.Nil {
		return err
	}
	e := &onceError{kind: ErrOnceUnsupported, cmd: cmd.Name()}
	switch text := err.Error(); {
	case text == onceOther, text == onceFirst:
		e.kind, e.why = ErrOnceMismatch, "nothing ran"
	case text == onceLost:
		e.kind, e.ran, e.why = ErrOutcomeUnknown, true, "it began, and its reply was not recorded"
	case strings.HasPrefix(text, "NOPERM "), strings.HasPrefix(text, "ERR The user executing the script can't "),
		strings.HasPrefix(text, "ERR ACL failure in script: "): // of Redis since 7.2, and of Valkey
		e.why, e.err = "the account must be allowed EVAL, EVALSHA, GET and SET on keys that begin with "+oncePrefix+", and the command itself, and to read and to write all of its keys", err
	case isUnknownEval(text):
		e.why = "the server does not know EVALSHA"
	default:
		return err
	}
	return e
}

// isUnknownEval reports whether a reply says that there are no scripts.
func isUnknownEval(text string) bool {
	text = strings.ToLower(strings.TrimPrefix(text, "ERR "))
	rest, ok := strings.CutPrefix(text, "unknown command ")
	return ok && strings.HasPrefix(strings.TrimLeft(rest, "'`"), "eval")
}

// exact makes an int64 of an integer that no double holds, which the script had to
// return as something else, where the command would show that.
func exact(cmd redis.Cmder) {
	c, ok := cmd.(*redis.Cmd)
	if !ok {
		return
	}
	switch _, r, _ := command.Keys(cmd); r {
	case command.Counter, command.HashCounter:
	default:
		return
	}
	if v, ok := c.Val().(string); ok {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			c.SetVal(n)
		}
	}
}

// isPassing reports whether a command may be sent by go-redis itself, on behalf of those
// of the caller.
func isPassing(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "asking", "multi", "exec", "unwatch":
		return true
	}
	return command.IsHandshake(cmd) || command.IsAboutTopology(cmd)
}

// standIns returns what is sent in place of the commands of a batch. The first of them
// brings the script: what is behind one that the server cannot run would run before it. whole
// says that each does, since the server keeps losing it.
func (w *onceWay) standIns(ctx context.Context, cmds []redis.Cmder, tagged, whole bool) (sent []redis.Cmder, err error) {
	o, unit, brings := oncesOf(ctx), unitOf(cmds), true
	sum := ""
	sent = slices.Clone(cmds)
	for i, cmd := range cmds {
		if !o.has(cmd) {
			continue
		}
		if unit == nil || sum == "" { // all of a transaction have one
			if sum, err = w.sum(o, cmd, unit); err != nil {
				return nil, err
			}
		}
		stand, err := w.standIn(o, cmd, unit, sum, tagged, brings)
		if err != nil {
			return nil, err
		}
		sent[i], brings = stand, whole
	}
	return sent, nil
}

// lacking returns the commands of a batch that did not run for want of the script, or of
// the right name of the record. A transaction is sent again as a whole.
func (w *onceWay) lacking(ctx context.Context, cmds []redis.Cmder, tagged bool) (rest []redis.Cmder) {
	o := oncesOf(ctx)
	var turns []redis.Cmder // without which the next one would run elsewhere
	for i, cmd := range cmds {
		if command.Turns(cmd) {
			turns = append(turns, cmd)
		}
		if !o.has(cmd) {
			continue
		}
		lack := w.lack(cmd.Err(), tagged)
		if lack == lacksNothing {
			continue
		}
		if lack == lacksSlot {
			w.cluster.Store(true)
		}
		rest, turns = append(rest, turns...), nil
		if i > 0 && cmds[i-1].Name() == "asking" {
			rest = append(rest, cmds[i-1])
		}
		rest = append(rest, cmd)
	}
	if len(rest) > 0 && command.HoldsMulti(cmds) {
		rest = cmds
	}
	return rest
}

// join adds what became of the part of a batch that was sent once more. If the whole has failed
// before, that is what to go by: what it says of commands that may have run is no more for those
// that have not.
func (f *finding) join(g finding) {
	if len(f.rest) > 0 {
		g.unsent = false
	}
	if f.err != nil && !isReply(f.err) {
		g.err, g.seen, g.why = f.err, f.seen, f.why
	}
	g.rest = append(f.rest, g.rest...)
	g.errs = append(f.errs, g.errs...)
	g.undelivered = nil
	*f = g
}

// readBatch does for the commands of a batch that have ids what read does for one. What
// refused the first of a transaction, so that it left no record, has refused all of it; what
// refused another one has not.
func (w *onceWay) readBatch(ctx context.Context, cmds []redis.Cmder, f *finding) {
	o, unit := oncesOf(ctx), unitOf(cmds)
	ran := slices.ContainsFunc(unit, func(cmd redis.Cmder) bool {
		err := cmd.Err()
		return err == nil || err == redis.Nil || err.Error() == onceLost
	})
	for _, cmd := range cmds {
		if !o.has(cmd) {
			continue
		}
		was := cmd.Err()
		if unit != nil && isUnqueued(cmds, was) {
			continue // it is about MULTI
		}
		err := w.read(cmd, was)
		if unit != nil && was != nil && was.Error() == onceFirst {
			err = cmp.Or(unit[0].Err(), err)
		}
		if ran {
			err = amid(err, was)
		}
		if isSame(err, was) {
			continue
		}
		cmd.SetErr(err)
		if isSame(f.err, was) || redis.IsExecAbortError(f.err) {
			f.err, f.seen, f.why = err, err, err
		}
	}
}

// amid returns the error of a command of a transaction of which others ran, in place of err,
// which may say that nothing did. The reply to it was was.
func amid(err, was error) error {
	e, ours := err.(*onceError)
	switch {
	case ours && e.kind == ErrOnceMismatch:
		e.ran, e.why = true, "others of its transaction ran"
	case isReply(err) && saysUndone(err):
		return ranElsewhere{replyOf(was)}
	}
	return err
}

// refuse is the error of a command that cannot have an id.
func refuse(cmd redis.Cmder, why string) error {
	return &onceError{kind: ErrOnceUnsupported, cmd: cmd.Name(), why: why}
}

// whyUnsendable is why a command is not sent that go-redis would not write.
const whyUnsendable = "an argument cannot be sent"
