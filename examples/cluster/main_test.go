package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redial-go/redial/redialtest"
)

func TestRun_NothingDoubled(t *testing.T) {
	redialtest.StartServer(t) // skips without redis-server
	redialtest.Leaks(t)
	var out strings.Builder
	if err := run(t.Context(), &out, 300*time.Millisecond); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		"connected    -> reconnecting", "---- kill -9 of the primary", "has taken over",
		"---- first success on its slots", "---- the other shards meanwhile", " 0 doubled          0 lost", "after the promotion",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// An interrupt in the middle of it ends all processes and removes their directories.
func TestRun_Interrupted_CleansUp(t *testing.T) {
	redialtest.StartServer(t) // skips without redis-server
	redialtest.Leaks(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir) // on Windows
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	interrupt := errors.New("interrupt")
	servers := 0
	out := &trigger{word: "kill -9", pull: func() {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		servers = len(list)
		cancel(interrupt)
	}}
	if err := run(ctx, out, 100*time.Millisecond); !errors.Is(err, interrupt) {
		t.Errorf("%v\n%s", err, out)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 || servers != 6 {
		t.Errorf("left behind of %d servers: %v, %v", servers, left, err)
	}
	if strings.Contains(out.String(), "acknowledged") {
		t.Errorf("a proof of nothing:\n%s", out)
	}
}

// trigger collects what is written and acts when it reads a word.
type trigger struct {
	strings.Builder
	word string
	pull func()
}

func (t *trigger) Write(b []byte) (int, error) {
	if strings.Contains(string(b), t.word) {
		t.pull()
	}
	return t.Builder.Write(b)
}

func TestRun_NoServer_SaysWhereToGetIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("REDIAL_SERVER", "")
	err := run(t.Context(), &strings.Builder{}, 0)
	if err == nil || !strings.Contains(err.Error(), "apt install redis-server") {
		t.Error(err)
	}
}
