package sys

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What an error says of itself is heard however it is wrapped.
func TestIsTimeout_IsTemporary(t *testing.T) {
	slow := &net.DNSError{IsTimeout: true}
	busy := &net.DNSError{IsTemporary: true}
	for _, tc := range []struct {
		err                error
		timeout, temporary bool
	}{
		{nil, false, false},
		{io.EOF, false, false},
		{os.ErrDeadlineExceeded, true, true},
		{slow, true, true},
		{busy, false, true},
		{&net.OpError{Op: "dial", Err: busy}, false, true},
		{fmt.Errorf("wrapped: %w", slow), true, true},
		{errors.Join(io.EOF, slow), true, true},
	} {
		assert.Equal(t, tc.timeout, IsTimeout(tc.err), "%v", tc.err)
		assert.Equal(t, tc.temporary, IsTemporary(tc.err), "%v", tc.err)
	}
}
