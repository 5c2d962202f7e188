package network

import (
	"testing"

	"github.com/redial-go/redial/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
