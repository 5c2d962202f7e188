package chaos

import (
	"math"
	"testing"
	"time"
)

// stageOf is a stage with nothing but what its lengths depend on.
func stageOf(scenario string, p play) *stage {
	return &stage{quick: p.Quick, chance: p.chance(scenario)}
}

func TestLasting_VariesByASixth(t *testing.T) {
	least, most := time.Duration(math.MaxInt64), time.Duration(0)
	for run := range 200 {
		d := stageOf("refuse", play{Seed: 1, Run: run}).lasting(6*time.Second, time.Second)
		least, most = min(least, d), max(most, d)
	}
	if least < 5*time.Second || least > 5200*time.Millisecond || most > 7*time.Second || most < 6800*time.Millisecond {
		t.Errorf("6 s became %v to %v, want 5 to 7 s", least, most)
	}
	if d := stageOf("refuse", play{Quick: true, Seed: 1}).lasting(time.Hour, 6*time.Second); d > 7*time.Second {
		t.Errorf("quick: %v", d)
	}
}

func TestLasting_IsTheSameForAllClients(t *testing.T) {
	length := func(scenario string, p play) time.Duration {
		return stageOf(scenario, p).lasting(time.Hour, time.Hour)
	}
	p := play{Seed: 7, Run: 1}
	if one, other := length("refuse", p), length("refuse", p); one != other {
		t.Errorf("the same run has two lengths, %v and %v", one, other)
	}
	for what, other := range map[string]time.Duration{
		"scenario": length("full", p),
		"run":      length("refuse", play{Seed: 7, Run: 2}),
		"seed":     length("refuse", play{Seed: 8, Run: 1}),
	} {
		if other == length("refuse", p) {
			t.Errorf("another %s has the same length", what)
		}
	}
}

func TestScenarios_WithAnyDialer(t *testing.T) {
	for _, s := range Scenarios() {
		if !s.AnyDialer {
			continue
		}
		for _, d := range Dialers() {
			v := s.With(d)
			if v.TLS != (d == TLSDialer) || v.Dialer != d || v.Plan.Deadline < patient {
				t.Errorf("%s: TLS %v, deadline %v", v.FullName(), v.TLS, v.Plan.Deadline)
			}
		}
		if s.compared || s.TLS || s.Dialer != OwnDialer {
			t.Errorf("%s: With has changed the scenario itself", s.Name)
		}
	}
}

func TestFindDialers(t *testing.T) {
	got, err := FindDialers("tls,own")
	if err != nil || len(got) != 2 || got[0] != TLSDialer || got[1] != OwnDialer {
		t.Errorf("FindDialers = %v, %v", got, err)
	}
	if _, err := FindDialers("own,other"); err == nil {
		t.Error("a dialer that is none was found")
	}
}
