package sys

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A peer that has closed or reset a connection is gone, one that has only said something
// is not; and to look costs nothing and takes nothing away.
func TestPeer_Gone(t *testing.T) {
	for name, linger := range map[string]int{"closed": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			rc, err := a.SyscallConn()
			require.NoError(t, err)
			p := PeerOf(rc)
			require.NotNil(t, p)
			assert.False(t, p.Gone())
			_, err = b.Write([]byte("x"))
			require.NoError(t, err)
			got := make([]byte, 1)
			_, err = io.ReadFull(a, got)
			require.NoError(t, err)
			_, err = b.Write([]byte("y"))
			require.NoError(t, err)
			assert.Never(t, p.Gone, 50*time.Millisecond, 5*time.Millisecond)
			assert.Zero(t, testing.AllocsPerRun(100, func() { p.Gone() }))
			_, err = io.ReadFull(a, got)
			require.NoError(t, err)
			assert.Equal(t, "y", string(got))
			require.NoError(t, b.SetLinger(linger))
			require.NoError(t, b.Close())
			require.Eventually(t, p.Gone, time.Second, time.Millisecond)
			require.NoError(t, a.Close())
			assert.False(t, p.Gone(), "of a connection of ours that is closed nothing is said")
		})
	}
}
