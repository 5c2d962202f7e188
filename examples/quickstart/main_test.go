package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
)

func TestRun_NothingLostNothingDoubled(t *testing.T) {
	var out strings.Builder
	s := schedule{healthy: 100 * time.Millisecond, outage: 200 * time.Millisecond}
	if err := run(t.Context(), &out, "", s); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		"connected    -> reconnecting", "reconnecting -> connected", "connected    -> closed",
		"---- server stopped", "---- server back", "0 lost        0 doubled", "after the server was back",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	const columns, rows = 80, 24 // of a terminal, as it is by default
	lines, taken := strings.Split(strings.TrimSpace(out.String()), "\n"), 0
	for _, line := range lines {
		taken += 1 + max(0, len(line)-1)/columns
	}
	if taken > rows-2 { // the command above, the prompt below
		t.Errorf("%d lines do not fit a screen:\n%s", taken, &out)
	}
	const proved = `^Proved: the server was away for 0\.\ds under load, no acknowledged write was lost, and no write ran twice\.$`
	if last := lines[len(lines)-1]; !regexp.MustCompile(proved).MatchString(last) {
		t.Errorf("it ends with %q", last)
	}
}

// What the README shows is what the program prints, but for the numbers.
func TestREADME_ShowsTheOutput(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out, "", schedule{healthy: 100 * time.Millisecond, outage: 200 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	want := shape(out.String())
	for _, name := range []string{"../../README.md", "../../README.zh-CN.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, sample, found := strings.Cut(string(text), "```text\nredial quickstart:")
		sample, _, ended := strings.Cut(sample, "\n```")
		if got := shape("redial quickstart:" + sample); !found || !ended || got != want {
			t.Errorf("%s shows\n%s\nand the program prints\n%s", name, got, want)
		}
	}
}

// shape is an output without its numbers, and without the words of the system.
func shape(output string) string {
	output = regexp.MustCompile(`connection lost: .*`).ReplaceAllString(output, "connection lost")
	output = regexp.MustCompile(` at attempt \d+`).ReplaceAllString(output, "")
	output = regexp.MustCompile(` *[\d.:]*\d`).ReplaceAllString(output, " #")
	return strings.TrimSpace(output)
}

func TestRun_OwnServer_StopsWithContextAndCleansUp(t *testing.T) {
	server := miniredis.RunT(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var out strings.Builder
	if err := run(ctx, &out, server.Addr(), schedule{}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.HasSuffix(out.String(), "\nProved: whatever became of the server, no acknowledged write was lost, and no write ran twice.\n") {
		t.Errorf("it ends with something else:\n%s", &out)
	}
	if keys := server.Keys(); len(keys) > 0 {
		t.Errorf("left behind: %v", keys)
	}
}

// A proof is worth what it catches.
func TestCheck_CatchesLostAndDoubled(t *testing.T) {
	for _, tt := range []struct {
		name          string
		worker        worker
		n, last       string
		lost, doubled int64
	}{
		{"all well", worker{acked: 5, written: 5, tried: 5}, "5", "5", 0, 0},
		{"nothing ran", worker{}, "", "", 0, 0},
		{"unknown ran", worker{acked: 5, unknown: 1, written: 5, tried: 6}, "6", "6", 0, 0},
		{"unknown did not run", worker{acked: 5, unknown: 1, written: 5, tried: 6}, "5", "5", 0, 0},
		{"INCR lost", worker{acked: 5, written: 5, tried: 5}, "4", "5", 1, 0},
		{"INCR doubled", worker{acked: 5, unknown: 1, written: 5, tried: 5}, "7", "5", 0, 1},
		{"SET lost", worker{acked: 5, written: 5, tried: 5}, "5", "4", 1, 0},
		{"late SET", worker{acked: 5, written: 5, tried: 5, limbo: map[int64]bool{4: true}}, "5", "4", 0, 0},
		{"stale GET", worker{acked: 5, written: 5, tried: 5, stale: 2}, "5", "5", 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := miniredis.RunT(t)
			for key, value := range map[string]string{"k:n": tt.n, "k:last": tt.last} {
				if value != "" {
					if err := server.Set(key, value); err != nil {
						t.Fatal(err)
					}
				}
			}
			w := tt.worker
			w.key = "k"
			w.rdb = redial.NewClient(&redis.Options{Addr: server.Addr()})
			defer w.rdb.Close()
			v, err := w.check(t.Context())
			if err != nil || v.lost != tt.lost || v.doubled != tt.doubled {
				t.Errorf("lost %d, doubled %d, %v; want %d, %d, no error", v.lost, v.doubled, err, tt.lost, tt.doubled)
			}
		})
	}
}
