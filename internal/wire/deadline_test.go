package wire

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// counted counts how often deadlines of a socket are set.
type counted struct {
	*net.TCPConn
	sets int
}

func (c *counted) SetDeadline(t time.Time) error { c.sets++; return c.TCPConn.SetDeadline(t) }
func (c *counted) SetReadDeadline(t time.Time) error {
	c.sets++
	return c.TCPConn.SetReadDeadline(t)
}
func (c *counted) SetWriteDeadline(t time.Time) error {
	c.sets++
	return c.TCPConn.SetWriteDeadline(t)
}

// plainPair returns a connection over TCP, whose deadlines are counted, and its peer.
func plainPair(t *testing.T) (c *Conn, socket *counted, peer net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, ln.Close()) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	peer, err = ln.Accept()
	require.NoError(t, err)
	f, _ := still(0)
	f.clock.Advance()
	c = f.New(nc, 1)
	socket = &counted{TCPConn: nc.(*net.TCPConn)}
	c.Conn = socket
	t.Cleanup(func() { _, _ = c.Close(), peer.Close() })
	return c, socket, peer
}

// roundTrip does what go-redis does for a command whose reply the peer has sent.
func roundTrip(t *testing.T, c *Conn, peer net.Conn, timeout time.Duration) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Time{}))
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(timeout)))
	_, err := c.Write([]byte("*1\r\n$4\r\nping\r\n"))
	require.NoError(t, err)
	_, err = peer.Write([]byte("+PONG\r\n"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(timeout)))
	_, err = c.Read(make([]byte, 64))
	require.NoError(t, err)
}

func TestDeadline_ThatIsNearlyTheSameIsKept(t *testing.T) {
	c, socket, peer := plainPair(t)
	roundTrip(t, c, peer, time.Minute)
	first := socket.sets
	assert.NotZero(t, first)
	for range 10 {
		roundTrip(t, c, peer, time.Minute)
	}
	assert.Equal(t, first, socket.sets)

	roundTrip(t, c, peer, time.Second)
	assert.Greater(t, socket.sets, first, "one that is sooner is set")
	sooner := socket.sets
	roundTrip(t, c, peer, time.Minute)
	assert.Greater(t, socket.sets, sooner, "and one that is much later")
}

// The clock that costs nothing to read lags.
func TestDeadline_ThatIsNearIsNotKept(t *testing.T) {
	const timeout = 60 * time.Millisecond
	c, socket, peer := plainPair(t)
	roundTrip(t, c, peer, timeout)
	sets := socket.sets
	<-time.After(timeout * 3 / 4)
	require.NoError(t, c.SetDeadline(time.Time{}))
	_, err := c.Write([]byte("*1\r\n$4\r\nping\r\n"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(timeout)))
	assert.Greater(t, socket.sets, sets)
}

func TestDeadline_IsMetWhateverTheSocketHasKept(t *testing.T) {
	const kept, own = 40 * time.Millisecond, 70 * time.Millisecond
	c, socket, peer := plainPair(t)
	roundTrip(t, c, peer, kept)
	sets := socket.sets
	require.NoError(t, c.SetDeadline(time.Time{}))
	began := time.Now()
	require.NoError(t, c.SetReadDeadline(began.Add(own)))
	require.Equal(t, sets, socket.sets, "else there is nothing to see here")
	_, err := c.Read(make([]byte, 64))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.GreaterOrEqual(t, time.Since(began), own)
	assert.Less(t, time.Since(began), own+time.Second)
}

func TestDeadline_NoneIsNone(t *testing.T) {
	c, socket, peer := plainPair(t)
	roundTrip(t, c, peer, 30*time.Millisecond)
	sets := socket.sets
	require.NoError(t, c.SetDeadline(time.Time{}))
	require.NoError(t, c.SetReadDeadline(time.Time{}))
	require.Equal(t, sets, socket.sets, "else there is nothing to see here")
	heard := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 64))
		heard <- err
	}()
	select {
	case err := <-heard:
		t.Fatal("it did not wait:", err)
	case <-time.After(100 * time.Millisecond):
	}
	_, err := peer.Write([]byte("+OK\r\n"))
	require.NoError(t, err)
	assert.NoError(t, <-heard)
}

func TestDeadline_WritesGoOnWhereTheyWere(t *testing.T) {
	c, _, peer := plainPair(t)
	request := make([]byte, 16<<20) // more than the kernel takes
	for i := range request {
		request[i] = byte(i * 7)
	}
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(60*time.Millisecond)))
	c.writing.want = time.Now().Add(10 * time.Second)
	require.NoError(t, peer.SetReadDeadline(c.writing.want))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(request)
		wrote <- err
	}()
	time.Sleep(100 * time.Millisecond) // the deadline of the socket passes with the request half written
	got := make([]byte, 0, len(request))
	buf := make([]byte, 1<<20)
	for len(got) < len(request) {
		n, err := peer.Read(buf)
		require.NoError(t, err)
		got = append(got, buf[:n]...)
	}
	require.NoError(t, <-wrote)
	assert.Equal(t, request, got)
}

func TestDeadline_PoolLooksAtWhatIsWell(t *testing.T) {
	c, _, peer := plainPair(t)
	roundTrip(t, c, peer, 20*time.Millisecond)
	<-time.After(40 * time.Millisecond) // what the socket has kept passes while the connection lies idle
	require.NoError(t, c.SetDeadline(time.Time{}))
	raw, err := c.Pooled().(pooled).SyscallConn()
	require.NoError(t, err)
	looked := false
	require.NoError(t, raw.Read(func(uintptr) bool { looked = true; return true }))
	assert.True(t, looked)
}

// exchange sends a PING for x and returns the moment at which its reply is waited for.
func exchange(t *testing.T, c *Conn, x *Call) time.Time {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Time{}))
	token, ok := x.Deadline()
	require.True(t, ok)
	require.NoError(t, c.SetWriteDeadline(token))
	_, err := c.Write([]byte("*1\r\n$4\r\nping\r\n"))
	require.NoError(t, err)
	now := time.Now()
	require.NoError(t, c.SetReadDeadline(now.Add(time.Minute)))
	return now
}

// A deadline that passes wakes a processor, which is what a command costs most that is sent
// now and then.
func TestDeadline_OfACallThatIsSeldom(t *testing.T) {
	c, _, peer := plainPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 3 {
		<-time.After(2 * seldom)
		x := c.fleet.calls.Begin(ctx, time.Minute, nil)
		now := exchange(t, c, x)
		assert.Greater(t, c.reading.have, now.Add(Unwatched*2))
		_, err := peer.Write([]byte("+PONG\r\n"))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 64))
		require.NoError(t, err)
		x.Release()
	}
}

// The end of a context is heeded when most replies would have come, however it is watched.
func TestDeadline_CanceledBeforeItIsHeeded(t *testing.T) {
	for _, pause := range []time.Duration{0, 2 * seldom} {
		t.Run(pause.String(), func(t *testing.T) {
			c, _, peer := plainPair(t)
			canceled := func() (x *Call, sent time.Time) {
				<-time.After(pause)
				ctx, cancel := context.WithCancel(t.Context())
				x = c.fleet.calls.Begin(ctx, time.Minute, nil)
				sent = exchange(t, c, x)
				cancel()
				return x, sent
			}
			for range 2 { // the second is sent soon after the first, or not
				for tries := 1; ; tries++ {
					x, sent := canceled()
					time.AfterFunc(Unwatched/10, func() { _, _ = peer.Write([]byte("+PONG\r\n")) })
					_, err := c.Read(make([]byte, 64))
					x.Release()
					if err == nil {
						break
					}
					require.Greater(t, time.Since(sent), Unwatched*9/10, "the reply was not waited for")
					require.Less(t, tries, 20, "it never came in time")
					c, _, peer = plainPair(t) // on a busy machine it is late
				}
			}
			_, sent := canceled()
			_, err := c.Read(make([]byte, 64))
			assert.ErrorIs(t, err, context.Canceled)
			assert.Greater(t, time.Since(sent), Unwatched*9/10)
			assert.Less(t, time.Since(sent), Unwatched+time.Second)
		})
	}
}
