package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/sys"
)

// scriptConn fails as told.
type scriptConn struct {
	net.Conn
	write func(p []byte) (int, error)
	read  func(p []byte) (int, error)
}

func (c *scriptConn) Write(p []byte) (int, error)      { return c.write(p) }
func (c *scriptConn) Read(p []byte) (int, error)       { return c.read(p) }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }
func (c *scriptConn) Close() error                     { return nil }

// recorder is an owner that remembers what it is told.
type recorder struct{ suspects []error }

func (*recorder) Address() string     { return "127.0.0.1:1" }
func (o *recorder) Suspect(err error) { o.suspects = append(o.suspects, err) }
func (o *recorder) Broken(err error)  { o.Suspect(err) }
func (*recorder) Cause() error        { return errRefused }
func (*recorder) Strayed(*Conn)       {}
func (*recorder) Unsubscribed()       {}
func (*recorder) Subscribed()         {}
func (*recorder) Shake()              {}

// still returns a fleet and its owner, which does nothing.
func still(idleAge time.Duration) (*Fleet, *recorder) {
	o := new(recorder)
	return NewFleet(context.Background(), NewClock(), new(Calls), new(Counters), Settings{Timeout: time.Second, IdleAge: idleAge}, o), o
}

// phaseOf returns the phase that err says.
func phaseOf(t *testing.T, err error) Phase {
	t.Helper()
	require.NotNil(t, ErrorOf(err), "%v", err)
	return ErrorOf(err).Phase
}

// go-redis reads a subscription on after a timeout of who reads it for a time. One that was given
// up for its silence has none.
func TestConn_RetiredSubscription_IsNoTimeout(t *testing.T) {
	f, _ := still(time.Minute)
	c := newConn(&scriptConn{read: func([]byte) (int, error) { return 0, net.ErrClosed }}, f, 1)
	c.role.Store(roleSubscriber)
	c.Retire(os.ErrDeadlineExceeded)
	_, err := c.Read(make([]byte, 1))
	assert.False(t, sys.IsTimeout(err), "%v", err)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.Equal(t, PhaseRead, phaseOf(t, err))
	var retired *RetiredError
	assert.ErrorAs(t, err, &retired)
}

func TestConn_LabelsFailuresWithTheirPhase(t *testing.T) {
	boom := errors.New("boom")
	ok := func(p []byte) (int, error) { return len(p), nil }
	for _, tc := range []struct {
		name  string
		conn  scriptConn
		use   func(c *Conn) error
		phase Phase
	}{
		{"nothing written", scriptConn{write: func([]byte) (int, error) { return 0, boom }},
			func(c *Conn) error { _, err := c.Write([]byte("x")); return err }, PhaseWrite},
		{"half written", scriptConn{write: func(p []byte) (int, error) { return 1, boom }},
			func(c *Conn) error { _, err := c.Write([]byte("xy")); return err }, PhasePartial},
		{"second chunk", scriptConn{write: func() func([]byte) (int, error) {
			calls := 0
			return func(p []byte) (int, error) {
				if calls++; calls > 1 {
					return 0, boom
				}
				return len(p), nil
			}
		}()}, func(c *Conn) error {
			_, err := c.Write([]byte("x"))
			if err == nil {
				_, err = c.Write([]byte("y"))
			}
			return err
		}, PhasePartial},
		{"no reply", scriptConn{write: ok, read: func([]byte) (int, error) { return 0, io.EOF }},
			func(c *Conn) error {
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				_, err := c.Read(make([]byte, 1))
				return err
			}, PhaseRead},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, o := still(0)
			err := tc.use(newConn(&tc.conn, f, 1))
			assert.Equal(t, tc.phase, phaseOf(t, err))
			assert.Len(t, o.suspects, 1, "the failure raises suspicion")
			assert.NoError(t, errors.Unwrap(err), "go-redis strips one layer off handshake errors")
		})
	}
}

func TestConn_Retired_RefusesBeforeTheFirstByte(t *testing.T) {
	f, o := still(0)
	c := newConn(&scriptConn{write: func([]byte) (int, error) {
		t.Error("a byte got through")
		return 0, nil
	}}, f, 1)
	f.gen.Store(2)
	_, err := c.Write([]byte("x"))
	assert.Equal(t, PhaseWrite, phaseOf(t, err), "nothing was sent")
	assert.ErrorIs(t, err, net.ErrClosed)
	rc, err := pooled{c}.SyscallConn()
	require.NoError(t, err)
	assert.Error(t, rc.Read(func(uintptr) bool { return true }), "the pool drops it")
	assert.Empty(t, o.suspects, "a retired connection is no evidence")
}

// The first part of a large batch was delivered when the connection was retired:
// nobody may claim that nothing was sent.
func TestConn_RetiredBetweenTwoWrites_IsPartial(t *testing.T) {
	f, _ := still(0)
	c := newConn(&scriptConn{write: func(p []byte) (int, error) { return len(p), nil }}, f, 1)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	f.gen.Store(2)
	_, err = c.Write([]byte("y"))
	assert.Equal(t, PhasePartial, phaseOf(t, err))
}

func TestConn_ReadTimeout_WithNothingOutstanding_IsNoNews(t *testing.T) {
	f, o := still(0)
	c := newConn(&scriptConn{read: func([]byte) (int, error) { return 0, context.DeadlineExceeded }}, f, 1)
	_, err := c.Read(make([]byte, 1))
	assert.Equal(t, PhaseRead, phaseOf(t, err))
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Empty(t, o.suspects)
}

func TestConn_ServerFull_IsNotMistakenForAnOldServer(t *testing.T) {
	f, _ := still(0)
	full := []byte("-ERR max number of clients reached\r\n")
	c := newConn(&scriptConn{read: func(p []byte) (int, error) { return copy(p, full), nil }}, f, 1)
	n, err := c.Read(make([]byte, 100))
	assert.Zero(t, n)
	assert.EqualError(t, err, "ERR max number of clients reached")
	assert.False(t, c.Sweepable(0), "there is nobody to ask on it, which would hide why it failed")
}

// The answer must be one reply and nothing else: whatever else waits there belongs to
// another request.
func TestIdleCheck_WrongAnswer_DropsTheConnection(t *testing.T) {
	f, _ := still(1)
	answer := []byte("$5\r\nstale\r\n+PONG\r\n")
	c := newConn(&scriptConn{
		write: func(p []byte) (int, error) {
			if !bytes.Equal(p, pingRequest) {
				t.Errorf("%q was sent", p)
			}
			return len(p), nil
		},
		read: func(p []byte) (int, error) { return copy(p, answer), nil },
	}, f, 1)
	for f.clock.Read() <= c.heard.Load() { // that of the system may stand still for a while
	}
	_, err := c.Write([]byte("*1\r\n$4\r\nincr\r\n"))
	assert.Equal(t, PhaseWrite, phaseOf(t, err), "nothing was sent")
	assert.Error(t, c.Retirement())
}

// What was said on a connection before a pool had it answers the same request at once, if it
// is the first; anything else goes to the server.
func TestConn_Greeting_AnswersTheFirstRequestAlone(t *testing.T) {
	const hello, reply = "*2\r\n$5\r\nhello\r\n$1\r\n3\r\n", "%1\r\n$2\r\nid\r\n:7\r\n"
	adopted := func() (c *Conn, written *[]byte) {
		written = new([]byte)
		f, _ := still(0)
		g := new(Greeting)
		g.Said([]byte(hello))
		g.Heard([]byte(reply))
		g.Said([]byte("*1\r\n$4\r\nping\r\n"))
		g.Heard([]byte("+PONG\r\n"))
		return f.Adopt(&scriptConn{
			write: func(p []byte) (int, error) { *written = append(*written, p...); return len(p), nil },
			read:  func(p []byte) (int, error) { return copy(p, "+OK\r\n"), nil },
		}, f.Generation(), g, time.Now()), written
	}
	say := func(c *Conn, request string) (answer string) {
		n, err := c.Write([]byte(request))
		require.NoError(t, err)
		require.Equal(t, len(request), n)
		buf := make([]byte, 100)
		n, err = c.Read(buf)
		require.NoError(t, err)
		return string(buf[:n])
	}
	c, written := adopted()
	assert.Equal(t, reply, say(c, hello))
	assert.Empty(t, *written)
	assert.EqualValues(t, 7, c.ID())
	assert.Equal(t, "+OK\r\n", say(c, hello), "once more is another matter")
	assert.Equal(t, hello, string(*written))

	c, written = adopted()
	const auth = "*2\r\n$4\r\nauth\r\n$1\r\nx\r\n"
	assert.Equal(t, "+OK\r\n", say(c, auth))
	assert.Equal(t, "+OK\r\n", say(c, hello), "the account may be another by now")
	assert.Equal(t, auth+hello, string(*written))
}

// A subscriber that reads late may be about to take what has come. It is cut when it waits at
// the next look as well, and not when it had read meanwhile.
func TestFleet_CutSilentSubscribers_LooksTwice(t *testing.T) {
	for _, reads := range []bool{false, true} {
		f, _ := still(0)
		c := f.New(&scriptConn{}, f.Generation())
		require.True(t, f.Add(c))
		c.role.Store(roleSubscriber)
		c.users.Store(1) // somebody waits in Read
		now := f.clock.Read()
		c.owes.Store(now - int64(time.Minute))
		f.heardAt.Store(now) // elsewhere
		assert.True(t, f.CutSilentSubscribers(time.Second), "there is to be another look")
		assert.Zero(t, f.n.Cut.Load())
		if reads {
			c.owes.Store(now - int64(time.Hour))
			assert.True(t, f.CutSilentSubscribers(time.Second))
			c.users.Store(0)
			assert.False(t, f.CutSilentSubscribers(time.Second))
			c.users.Store(1)
			assert.True(t, f.CutSilentSubscribers(time.Second))
			assert.Zero(t, f.n.Cut.Load())
			continue
		}
		assert.False(t, f.CutSilentSubscribers(time.Second))
		assert.EqualValues(t, 1, f.n.Cut.Load())
	}
}
