package wire

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

func TestEvidence_None(t *testing.T) {
	f, _ := still(1)
	assert.True(t, newConn(&scriptConn{}, f, 1).evidence() == noEvidence, "no socket at all")
	nc, other := net.Pipe()
	defer nc.Close()
	defer other.Close()
	assert.True(t, newConn(nc, f, 1).evidence() == noEvidence)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	tcp, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer tcp.Close()
	assert.Equal(t, runtime.GOOS != "linux", newConn(tcp, f, 1).evidence() == noEvidence)
}

// A look that comes right after another does not put off the one that was planned.
func TestInspect_LooksCloserAsPlanned(t *testing.T) {
	f, _ := still(0)
	f.settings.Beat = time.Second
	c := newConn(&scriptConn{}, f, 1)
	require.True(t, f.Add(c))
	c.owes.Store(1)
	for f.clock.Read() <= int64(resentFor/2) {
		time.Sleep(time.Millisecond)
	}
	now := time.Now()
	planned := f.Inspect(now, true)
	assert.Equal(t, now.Add(closerGlance), planned)
	assert.Equal(t, planned, f.Inspect(now.Add(closerGlance/5), true))
}

// A fleet whose connections are all stuck learns from the one beside it whether packets get
// lost on the way.
func TestInspect_LooksBesideTheFleet(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	go func() {
		if nc, err := ln.Accept(); err == nil {
			_, _ = io.Copy(nc, nc)
			_ = nc.Close()
		}
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer nc.Close()
	f, _ := still(0)
	if newConn(nc, f, 1).evidence() == noEvidence {
		redialtest.Skip(t, "this system's kernel tells nothing")
	}
	for range noLosses {
		_, err = nc.Write([]byte("x"))
		require.NoError(t, err)
		_, err = nc.Read(make([]byte, 1))
		require.NoError(t, err)
	}
	now := time.Now()
	f.Inspect(now, true)
	assert.False(t, f.record.sound(), "nothing is known")
	f.Beside(nc)
	assert.Eventually(t, func() bool { // the last echo wants to be acknowledged
		now = now.Add(time.Second)
		f.Inspect(now, true)
		return f.record.sound()
	}, time.Second, 10*time.Millisecond)
	f.Beside(nil)
	f.Inspect(now.Add(time.Second), true)
	assert.Nil(t, f.witness.Load())
}
