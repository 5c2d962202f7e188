package house

import (
	"fmt"
	"os"
	"testing"

	"github.com/redial-go/redial/internal/testkit"
)

// Every name of a file, in all that is here, is one from the root.
func TestMain(m *testing.M) {
	if err := os.Chdir(testkit.Root()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	testkit.Main(m)
}
