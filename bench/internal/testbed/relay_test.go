package testbed

import (
	"io"
	"net"
	"testing"
	"time"
)

// echo answers PONG to everything, and ends with the test.
func echo(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer func() { _ = nc.Close() }()
				buf := make([]byte, 64)
				for {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(nc, "+PONG\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestRelay(t *testing.T) {
	r, err := StartRelay(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := AwaitPong(r.Addr()); err != nil {
		t.Fatal(err)
	}
	const hold = 200 * time.Millisecond
	r.Hold(hold)
	if Pong(r.Addr()) == nil {
		t.Error("a connection that is held answers within 100 ms")
	}
	began := time.Now()
	if _, err := AwaitPong(r.Addr()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < hold {
		t.Errorf("held for %v, want %v", took, hold)
	}
	r.Hold(time.Hour)
	nc, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }() // Close of the relay does not wait for it
}
