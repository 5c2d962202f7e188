package testbed

import (
	"context"
	"errors"
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

// Audit compares the calls with what is on the server. Each that counts had a key of its own.
func Audit(addr string, calls []load.Call) (Ledger, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = rdb.Close() }()
	var l Ledger
	var incrs []load.Call
	for _, c := range calls {
		if c.Key != "" {
			incrs = append(incrs, c)
		}
	}
	for len(incrs) > 0 {
		batch := incrs[:min(1000, len(incrs))]
		incrs = incrs[len(batch):]
		keys := make([]string, len(batch))
		for i, c := range batch {
			keys[i] = c.Key
		}
		values, err := rdb.MGet(context.Background(), keys...).Result()
		if err != nil {
			return l, err
		}
		for i, c := range batch {
			text, _ := values[i].(string)
			count, _ := strconv.Atoi(text)
			l.enter(c, count)
		}
	}
	return l, nil
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
