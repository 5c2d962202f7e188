package wire

import (
	"os"
	"testing"

	"github.com/redial-go/redial/redialtest"
)

func TestMain(m *testing.M) { os.Exit(redialtest.LeaksMain(m)) }
