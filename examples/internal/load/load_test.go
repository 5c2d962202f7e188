package load

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
)

// A proof is worth what it catches.
func TestCheck_CatchesLostAndDoubled(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		change                int // of what the server holds, behind the back of the load
		killed                bool
		doubled, lost, byKill int64
		blamed                bool
	}{
		{name: "all well"},
		{name: "doubled", change: 2, doubled: 2, blamed: true},
		{name: "doubled by a failover", change: 1, killed: true, doubled: 1, blamed: true},
		{name: "lost", change: -2, lost: 2, blamed: true},
		{name: "lost by a failover", change: -2, killed: true, byKill: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := miniredis.RunT(t)
			rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
			defer rdb.Close()
			l := Start(t.Context(), rdb, []string{"a", "b"})
			defer l.Stop()
			flow(l)
			if tt.killed {
				<-l.Killed(time.Now())
			}
			if _, err := server.Incr("a", tt.change); err != nil {
				t.Fatal(err)
			}
			flow(l)
			l.Stop()
			p, err := l.Check(t.Context())
			if err != nil || p.Doubled != tt.doubled || p.Lost != tt.lost || p.LostByServer != tt.byKill {
				t.Errorf("%+v, %v; want %+v", p, err, tt)
			}
			if p.Acked < 2 || p.Ran != p.Acked+int64(tt.change) {
				t.Errorf("%+v: the sum is wrong", p)
			}
			if blamed := p.Err() != nil; blamed != tt.blamed {
				t.Errorf("%v; want an error: %v", p.Err(), tt.blamed)
			}
		})
	}
}

// flow returns when every counter has got on.
func flow(l *Load) {
	for done := int64(0); done < 10; done += l.Lap().Done {
		time.Sleep(time.Millisecond)
	}
}

// What may have run is allowed to have run once, early or late, and no more.
func TestCounter_UnknownOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name          string
		open          int64
		replies       []int64 // of the INCRs after the 5th
		doubled, lost int64
	}{
		{"none", 0, []int64{6, 7}, 0, 0},
		{"ran", 1, []int64{7, 8}, 0, 0},
		{"did not run", 1, []int64{6, 7}, 0, 0},
		{"ran late", 1, []int64{6, 8, 9}, 0, 0},
		{"ran twice", 1, []int64{8, 9}, 1, 0},
		{"ran early and late", 1, []int64{7, 9, 10}, 1, 0},
		{"an acknowledged one is gone", 1, []int64{5, 6}, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &Load{}
			c := &counter{least: 5, open: tt.open}
			for _, n := range tt.replies {
				l.note(c, time.Now(), n, nil)
			}
			if c.doubled != tt.doubled || c.lost != tt.lost {
				t.Errorf("%d doubled, %d lost; want %d, %d", c.doubled, c.lost, tt.doubled, tt.lost)
			}
		})
	}
}

func TestNote_Outcomes(t *testing.T) {
	server := miniredis.RunT(t)
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	rdb.Close()
	_, refused := rdb.Incr(context.Background(), "a").Result()
	l, c := &Load{}, &counter{}
	l.note(c, time.Now(), 0, refused)
	l.note(c, time.Now(), 0, errors.New("nobody knows"))
	if lap := l.Lap(); lap.Failed != 1 || lap.Unknown != 1 || c.failed != 1 || c.unknown != 1 || c.open != 1 {
		t.Errorf("%+v, %+v", lap, c)
	}
}
