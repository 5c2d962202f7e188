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
	planned, _ := f.Inspect(now, true)
	assert.Equal(t, now.Add(closerGlance), planned)
	again, _ := f.Inspect(now.Add(closerGlance/5), true)
	assert.Equal(t, planned, again)
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
	f.Alone()
	f.Inspect(now.Add(time.Second), true)
	assert.Nil(t, f.witness.Load())
}

// A connection is to blame when it is tried in vain after others were answered, and not
// when nobody was.
func TestVigil(t *testing.T) {
	type look struct {
		at       time.Duration // since the request was written
		tries    int
		answered time.Duration // since the request, when others were last; negative: before it
	}
	ms := time.Millisecond
	for name, tc := range map[string]struct {
		looks  []look
		proved bool
	}{
		"others are answered all along":   {[]look{{300 * ms, 1, 300 * ms}, {350 * ms, 1, 350 * ms}, {600 * ms, 2, 600 * ms}, {650 * ms, 2, 650 * ms}}, true},
		"an answer may be on its way":     {[]look{{300 * ms, 1, 300 * ms}, {350 * ms, 1, 350 * ms}, {600 * ms, 2, 600 * ms}}, false},
		"nobody is answered":              {[]look{{300 * ms, 1, -10 * ms}, {650 * ms, 2, -10 * ms}, {700 * ms, 2, -10 * ms}, {1450 * ms, 3, -10 * ms}, {1500 * ms, 3, -10 * ms}}, false},
		"the others' answers were late":   {[]look{{300 * ms, 1, 200 * ms}, {650 * ms, 2, 200 * ms}, {700 * ms, 2, 200 * ms}}, false},
		"nobody was, and others are now":  {[]look{{650 * ms, 2, -10 * ms}, {1050 * ms, 2, 1040 * ms}, {1100 * ms, 2, 1100 * ms}, {1350 * ms, 2, 1350 * ms}}, false},
		"and it is tried again in vain":   {[]look{{650 * ms, 2, -10 * ms}, {1050 * ms, 2, 1040 * ms}, {1450 * ms, 3, 1450 * ms}, {1500 * ms, 3, 1500 * ms}}, true},
		"it was tried too few times":      {[]look{{300 * ms, 0, 300 * ms}, {600 * ms, 1, 600 * ms}, {650 * ms, 1, 650 * ms}, {700 * ms, 1, 700 * ms}}, false},
		"something came through meantime": {[]look{{300 * ms, 1, 300 * ms}, {600 * ms, 2, 600 * ms}, {650 * ms, 1, 650 * ms}, {700 * ms, 1, 700 * ms}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var v vigil
			const sent = int64(time.Hour)
			proved := false
			for _, l := range tc.looks {
				proved = v.sees(sent+int64(l.at), l.tries, l.at, l.at-l.answered, 10*ms)
			}
			assert.Equal(t, tc.proved, proved)
		})
	}
}
