package narrate

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redial-go/redial"
)

func TestEvent(t *testing.T) {
	var out strings.Builder
	p := New(&out)
	e := redial.Event{
		From: redial.StateConnected, To: redial.StateReconnecting, At: p.began.Add(2 * time.Second),
		In: 1500 * time.Millisecond, Reason: "connection lost", Err: errors.New("EOF"),
	}
	p.Event(e)
	e.Node, e.Attempts = "127.0.0.1:1", 7
	p.Event(e)
	e.Node, e.Attempts, e.Err = "", 0, errors.New(e.Reason)
	p.Event(e)
	const want = "" +
		"   2.000s  connected    -> reconnecting  after   1.500s  connection lost: EOF\n" +
		"   2.000s  connected    -> reconnecting  after   1.500s  127.0.0.1:1 connection lost: EOF at attempt 7\n" +
		"   2.000s  connected    -> reconnecting  after   1.500s  connection lost\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}

func TestExplain(t *testing.T) {
	_, missing := exec.LookPath("no-such-program")
	if got := Explain(fmt.Errorf("start: %w", missing), "./here").Error(); !strings.Contains(got, "apt install redis-server") ||
		!strings.Contains(got, "go run ./here") || strings.Contains(got, "\n") {
		t.Error(got)
	}
	if other := errors.New("other"); Explain(other, "./here") != other {
		t.Error("another error was replaced")
	}
}
