package soak

import (
	"fmt"
	"math"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
)

// kind is a kind of operation on one key.
type kind int

const (
	get kind = iota
	set
	cas // sets to value if it is old
	incr
)

// input is what was asked.
type input struct {
	kind       kind
	key        string
	value, old string
}

// output is what came back. An operation whose outcome is unknown may have taken
// effect at any time since it was issued, or never.
type output struct {
	value   string // read, or the counter after INCR
	swapped bool   // of cas
	unknown bool
}

// register is the sequential behavior of one key: its value, "" when missing.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, op := range history {
			key := op.Input.(input).key
			byKey[key] = append(byKey[key], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		now, i, o := state.(string), in.(input), out.(output)
		switch i.kind {
		case get:
			return o.value == now, now
		case set:
			return true, i.value
		case cas:
			if now == i.old {
				return o.unknown || o.swapped, i.value
			}
			return o.unknown || !o.swapped, now
		case incr:
			n, _ := strconv.Atoi(now)
			next := strconv.Itoa(n + 1)
			return o.unknown || o.value == next, next
		}
		panic("unknown kind")
	},
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

// history records operations. It is safe for concurrent use.
type history struct {
	began time.Time

	mu  sync.Mutex
	ops []porcupine.Operation
}

func newHistory() *history { return &history{began: time.Now()} }

// now is the time for record.
func (h *history) now() int64 { return int64(time.Since(h.began)) }

// record notes an operation that began at call and is over. One that certainly did
// not run is not to be recorded, nor is a read without an answer.
func (h *history) record(worker int, call int64, in input, out output) {
	end := h.now()
	if out.unknown {
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: worker, Input: in, Output: out, Call: call, Return: end})
}

// len returns how many there are.
func (h *history) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// check reports a history that no order of its operations explains.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	const patience = time.Minute
	switch result, _ := porcupine.CheckOperationsVerbose(register, h.ops, patience); result {
	case porcupine.Illegal:
		for _, part := range register.Partition(h.ops) {
			if porcupine.CheckOperationsTimeout(register, part, patience) == porcupine.Illegal {
				for _, op := range part {
					t.Logf("%d [%v, %v] %s", op.ClientId, time.Duration(op.Call), time.Duration(op.Return), register.DescribeOperation(op.Input, op.Output))
				}
				t.Fatalf("the history of %s is not linearizable", part[0].Input.(input).key)
			}
		}
	case porcupine.Unknown:
		t.Errorf("no verdict on %d operations within %v", len(h.ops), patience)
	}
}

// The checker must find what it is there to find.
func TestRegister_FindsWhatIsWrong(t *testing.T) {
	op := func(call, end int64, in input, out output) porcupine.Operation {
		if out.unknown {
			end = math.MaxInt64
		}
		in.key = "k"
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	write := func(call, end int64, value string, unknown bool) porcupine.Operation {
		return op(call, end, input{kind: set, value: value}, output{unknown: unknown})
	}
	read := func(call, end int64, value string) porcupine.Operation {
		return op(call, end, input{kind: get}, output{value: value})
	}
	count := func(call, end int64, value string, unknown bool) porcupine.Operation {
		return op(call, end, input{kind: incr}, output{value: value, unknown: unknown})
	}
	swap := func(call, end int64, old, value string, swapped bool) porcupine.Operation {
		return op(call, end, input{kind: cas, old: old, value: value}, output{swapped: swapped})
	}
	for name, tc := range map[string]struct {
		ops  []porcupine.Operation
		want bool
	}{
		"fine":                       {[]porcupine.Operation{write(0, 1, "a", false), read(2, 3, "a")}, true},
		"lost":                       {[]porcupine.Operation{write(0, 1, "a", false), read(2, 3, "")}, false},
		"unknown, seen late":         {[]porcupine.Operation{write(0, 1, "a", true), read(2, 3, ""), read(4, 5, "a")}, true},
		"unknown, never seen":        {[]porcupine.Operation{write(0, 1, "a", true), read(2, 3, "")}, true},
		"unknown, seen and gone":     {[]porcupine.Operation{write(0, 1, "a", true), read(2, 3, "a"), read(4, 5, "")}, false},
		"ran twice":                  {[]porcupine.Operation{write(0, 1, "a", true), write(2, 3, "b", false), read(4, 5, "a"), write(6, 7, "c", false), read(8, 9, "a")}, false},
		"counted":                    {[]porcupine.Operation{count(0, 1, "1", false), count(2, 3, "2", false)}, true},
		"counted twice":              {[]porcupine.Operation{count(0, 1, "1", false), count(2, 3, "3", false)}, false},
		"counted once, unknown":      {[]porcupine.Operation{count(0, 1, "", true), count(2, 3, "2", false)}, true},
		"counted twice, unknown":     {[]porcupine.Operation{count(0, 1, "", true), count(2, 3, "3", false)}, false},
		"swapped":                    {[]porcupine.Operation{write(0, 1, "a", false), swap(2, 3, "a", "b", true), read(4, 5, "b")}, true},
		"swapped, though different":  {[]porcupine.Operation{write(0, 1, "a", false), swap(2, 3, "x", "b", true)}, false},
		"not swapped, though equal":  {[]porcupine.Operation{write(0, 1, "a", false), swap(2, 3, "a", "b", false)}, false},
		"overlapping, either's turn": {[]porcupine.Operation{write(0, 5, "a", false), read(1, 2, ""), read(3, 4, "a")}, true},
	} {
		assert.Equal(t, tc.want, porcupine.CheckOperations(register, tc.ops), name)
	}
}
