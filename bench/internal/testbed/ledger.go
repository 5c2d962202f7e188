package testbed

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redis/go-redis/v9"
)

// Ledger says how often the INCRs of a load were executed, by the server's count.
type Ledger struct {
	Twice   int // executed more than once
	Lost    int // acknowledged, not executed
	Lied    int // executed, though the error says that nothing ran
	Unknown int // failed, outcome said to be unknown
	Refused int // failed, said not to have run
}

// Audit compares the calls with what is on the server. Each that counts had a key
// of its own.
func Audit(addr string, calls []load.Call) (Ledger, error) {
	var counting []load.Call
	var keys []string
	for _, c := range calls {
		if c.Key != "" {
			counting = append(counting, c)
			keys = append(keys, c.Key)
		}
	}
	var l Ledger
	counts, err := Counts(addr, keys)
	if err != nil {
		return l, err
	}
	for i, c := range counting {
		l.enter(c, counts[i])
	}
	return l, nil
}

// Counts asks a server for the counters at keys; a missing one is 0.
func Counts(addr string, keys []string) ([]int, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = rdb.Close() }()
	var counts []int
	for batch := range slices.Chunk(keys, 1000) {
		values, err := rdb.MGet(context.Background(), batch...).Result()
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			text, ok := v.(string)
			if !ok {
				counts = append(counts, 0)
				continue
			}
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, err
			}
			counts = append(counts, n)
		}
	}
	return counts, nil
}

func (l *Ledger) enter(c load.Call, executed int) {
	if executed > 1 {
		l.Twice++
	}
	switch {
	case c.Err == nil && executed == 0:
		l.Lost++
	case errors.Is(c.Err, redial.ErrUnavailable):
		l.Refused++
		if executed > 0 {
			l.Lied++
		}
	case errors.Is(c.Err, redial.ErrOutcomeUnknown):
		l.Unknown++
	}
}
