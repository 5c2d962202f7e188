package once

import (
	"fmt"
	"os"
	"testing"

	"github.com/redial-go/redial/internal/testkit"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(callerAddr); addr != "" {
		fmt.Fprintln(os.Stderr, place(addr)) // it ends by failing alone
		os.Exit(1)
	}
	testkit.Main(m)
}
