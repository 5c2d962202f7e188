package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redial-go/redial/redialtest"
)

// The shop with ids has its books right, and the one without has not: else nothing went wrong.
func TestRun_BooksAreRight(t *testing.T) {
	redialtest.StartServer(t) // skips without redis-server
	redialtest.Leaks(t)
	var out strings.Builder
	if err := run(t.Context(), &out, "", time.Second); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{`without ids +[1-9]\d* orders placed, +[1-9]\d* tries again +[1-9]\d* doubled`, `with ids +[1-9]\d* orders placed, +\d+ tries again +0 doubled +0 missing +the stock is wrong by 0\n`} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// A server that is given is used, and left as it was but for records.
func TestRun_ServerIsGiven(t *testing.T) {
	s := redialtest.StartServer(t)
	var out strings.Builder
	if err := run(t.Context(), &out, s.Addr(), 300*time.Millisecond); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	keys, _ := s.Do("KEYS", "*").([]any)
	for _, key := range keys {
		if !strings.HasPrefix(key.(string), "redial:once:") {
			t.Errorf("%v is left", key)
		}
	}
}

func TestRun_NoServer_SaysWhereToGetIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("REDIAL_SERVER", "")
	err := run(t.Context(), &strings.Builder{}, "", 0)
	if err == nil || !strings.Contains(err.Error(), "apt install redis-server") {
		t.Error(err)
	}
}
