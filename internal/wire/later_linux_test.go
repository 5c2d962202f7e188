package wire

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What becomes of a request that is written when its reply is read.

const incr = "*1\r\n$4\r\nincr\r\n"

// greetedPair returns a connection over TCP that has served a command, and its peer.
func greetedPair(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	c, socket, peer := plainPair(t)
	c.Conn = socket.TCPConn
	roundTrip(t, c, peer, time.Minute)
	got := make([]byte, 4<<10)
	_, err := peer.Read(got)
	require.NoError(t, err)
	return c, peer.(*net.TCPConn)
}

// postpone writes a request, which waits then.
func postpone(t *testing.T, c *Conn) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Time{}))
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Minute)))
	n, err := c.Write([]byte(incr))
	require.NoError(t, err)
	require.Equal(t, len(incr), n)
	require.True(t, c.later.there.Load(), "else there is nothing to see here")
}

// hears wants the peer to have got a request.
func hears(t *testing.T, peer net.Conn, request string) {
	t.Helper()
	require.NoError(t, peer.SetReadDeadline(time.Now().Add(10*time.Second)))
	got := make([]byte, len(request))
	_, err := io.ReadFull(peer, got)
	require.NoError(t, err)
	require.Equal(t, request, string(got))
}

func TestLater_IsWrittenWhenTheReplyIsRead(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"a deadline": time.Minute, "one that is near": Unwatched / 2, "none": 0} {
		t.Run(name, func(t *testing.T) {
			c, peer := greetedPair(t)
			for range 3 {
				postpone(t, c)
				answered := make(chan error, 1)
				go func() {
					_, err := io.ReadFull(peer, make([]byte, len(incr)))
					if err == nil {
						_, err = peer.Write([]byte(":1\r\n"))
					}
					answered <- err
				}()
				if timeout > 0 {
					require.NoError(t, c.SetReadDeadline(time.Now().Add(timeout)))
				}
				buf := make([]byte, 64)
				n, err := c.Read(buf)
				require.NoError(t, <-answered)
				if timeout != Unwatched/2 || err == nil {
					require.NoError(t, err)
					assert.Equal(t, ":1\r\n", string(buf[:n]))
					continue
				}
				require.ErrorIs(t, err, os.ErrDeadlineExceeded, "this machine is busy")
				return
			}
		})
	}
}

// The runtime has told of what came before the request was written, and will not again.
func TestLater_WhatCameBeforeIsRead(t *testing.T) {
	for name, come := range map[string]func(peer *net.TCPConn) error{
		"the end": (*net.TCPConn).CloseWrite,
		"a push":  func(peer *net.TCPConn) error { _, err := peer.Write([]byte(">1\r\n+x\r\n")); return err },
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := greetedPair(t)
			require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute))) // it is polled from now on
			postpone(t, c)
			require.NoError(t, come(peer))
			require.Eventually(t, func() bool {
				seen := false
				require.NoError(t, c.rc.Control(func(fd uintptr) {
					_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
					seen = err == nil
				}))
				return seen
			}, 10*time.Second, time.Millisecond)
			began := time.Now()
			require.NoError(t, c.SetReadDeadline(began.Add(time.Minute)))
			n, err := c.Read(make([]byte, 64))
			assert.Less(t, time.Since(began), 10*time.Second)
			if name == "the end" {
				assert.Equal(t, PhaseRead, phaseOf(t, err))
				assert.ErrorIs(t, err, io.EOF)
			} else {
				assert.NoError(t, err)
				assert.Equal(t, len(">1\r\n+x\r\n"), n)
			}
			hears(t, peer, incr)
		})
	}
}

func TestLater_NothingWasSent(t *testing.T) {
	read := func(c *Conn) error {
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 64))
		return err
	}
	for name, tc := range map[string]struct {
		what func(t *testing.T, c *Conn, peer *net.TCPConn)
		want error
	}{
		"reset": {func(t *testing.T, c *Conn, peer *net.TCPConn) {
			require.NoError(t, peer.SetLinger(0))
			require.NoError(t, peer.Close())
		}, syscall.ECONNRESET},
		"given up": {func(t *testing.T, c *Conn, _ *net.TCPConn) { c.Retire(errRefused) }, errRefused},
		"closed":   {func(t *testing.T, c *Conn, _ *net.TCPConn) { require.NoError(t, c.raw.Close()) }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := greetedPair(t)
			postpone(t, c)
			tc.what(t, c, peer)
			err := read(c)
			assert.Equal(t, PhaseWrite, phaseOf(t, err))
			assert.ErrorIs(t, ErrorOf(err).Err, tc.want)
			if name == "reset" {
				assert.ErrorContains(t, ErrorOf(err).Err, "write tcp 127.0.0.1:", "as without")
				_, again := c.Read(make([]byte, 64))
				assert.Same(t, ErrorOf(err), ErrorOf(again), "go-redis may read once more")
			}
		})
	}
}

func TestLater_IsWrittenThoughTheTimeIsOver(t *testing.T) {
	c, peer := greetedPair(t)
	postpone(t, c)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	require.True(t, c.early)
	require.NoError(t, c.setRead(longAgo))
	c.reading.want = longAgo
	_, err := c.Read(make([]byte, 64))
	assert.Equal(t, PhaseRead, phaseOf(t, err))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	hears(t, peer, incr)
}

func TestLater_SecondPartComesAfterTheFirst(t *testing.T) {
	c, peer := greetedPair(t)
	postpone(t, c)
	_, err := c.Write([]byte("more"))
	require.NoError(t, err)
	hears(t, peer, incr+"more")
}

// Whoever reads while another writes may have come before there was something to write, or
// after.
func TestLater_ReaderAndWriterMeet(t *testing.T) {
	c, peer := greetedPair(t)
	echoed := make(chan error, 1)
	go func() { _, err := io.Copy(peer, peer); echoed <- err }()
	require.NoError(t, c.SetDeadline(time.Time{}))
	buf := make([]byte, 64)
	for range 5000 {
		c.duplex.Store(false)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		var both sync.WaitGroup
		both.Go(func() {
			_, err := c.Write([]byte(incr))
			assert.NoError(t, err)
		})
		n, err := io.ReadAtLeast(c, buf, len(incr))
		require.NoError(t, err)
		require.Equal(t, incr, string(buf[:n]))
		both.Wait()
	}
	require.NoError(t, c.Close())
	<-echoed
}

func TestLater_WhatIsNotPostponed(t *testing.T) {
	for name, prepare := range map[string]func(c *Conn) string{
		"a large one":            func(*Conn) string { return incr + string(make([]byte, maxPostponed)) },
		"one that waits":         func(*Conn) string { return "*3\r\n$5\r\nblpop\r\n$1\r\nk\r\n$1\r\n0\r\n" },
		"monitor":                func(*Conn) string { return "*1\r\n$7\r\nmonitor\r\n" },
		"subscribe":              func(*Conn) string { return "*2\r\n$9\r\nsubscribe\r\n$1\r\nk\r\n" },
		"no reply":               func(*Conn) string { return "*3\r\n$6\r\nclient\r\n$5\r\nreply\r\n$3\r\noff\r\n" },
		"duplex":                 func(c *Conn) string { c.duplex.Store(true); return incr },
		"cached":                 func(c *Conn) string { c.fleet.settings.Cached = true; return incr },
		"before the first reply": func(c *Conn) string { c.greeted.Store(false); return incr },
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := greetedPair(t)
			require.NoError(t, c.SetDeadline(time.Time{}))
			request := prepare(c)
			_, err := c.Write([]byte(request))
			require.NoError(t, err)
			hears(t, peer, request)
		})
	}
}
