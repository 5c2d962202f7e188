// Package testbed observes servers and processes from outside the clients.
package testbed

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"
)

// Pong asks once for a PONG on a connection of its own. It does not wait long for
// one: it is there to see that nobody answers.
func Pong(addr string) error { return PongTLS(addr, nil) }

// PongTLS is Pong through TLS, unless conf is nil.
func PongTLS(addr string, conf *tls.Config) error { return pong(addr, conf, 100*time.Millisecond) }

func pong(addr string, conf *tls.Config, patience time.Duration) error {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if conf != nil {
		nc = tls.Client(nc, conf) // the handshake comes with the first byte
	}
	if _, err := io.WriteString(nc, "PING\r\n"); err != nil {
		return err
	}
	reply := make([]byte, len("+PONG\r\n"))
	if _, err := io.ReadFull(nc, reply); err != nil {
		return err
	}
	if string(reply) != "+PONG\r\n" {
		return fmt.Errorf("answer to PING: %q", reply)
	}
	return nil
}

// AwaitPong tries in a tight loop and returns the moment of the first PONG.
func AwaitPong(addr string) (time.Time, error) { return AwaitPongTLS(addr, nil) }

// AwaitPongTLS is AwaitPong through TLS, unless conf is nil.
func AwaitPongTLS(addr string, conf *tls.Config) (time.Time, error) {
	giveUp := time.Now().Add(20 * time.Second)
	for {
		err := pong(addr, conf, time.Second)
		now := time.Now()
		if err == nil {
			return now, nil
		}
		if now.After(giveUp) {
			return now, fmt.Errorf("no PONG from %s: %w", addr, err)
		}
		time.Sleep(100 * time.Microsecond)
	}
}
