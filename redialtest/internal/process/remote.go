// Processes that run elsewhere, on a machine that shares the network and the files of the
// one that asks for them, as Linux does with the tests of Windows that wine runs.
package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
)

// A process has a connection of its own, with one value of JSON after the other: an order
// for it to be started, then signals; the answer to the order, then what it prints, answers
// to signals, and the word that it is gone. It dies with the connection.
type (
	order struct {
		Dir  string   `json:"dir"`
		Args []string `json:"args"`
	}
	word struct {
		PID      int    `json:"pid,omitempty"`      // it was started
		Log      []byte `json:"log,omitempty"`      // it has printed this
		Answered bool   `json:"answered,omitempty"` // the oldest signal was sent, or Error says why not
		Exited   bool   `json:"exited,omitempty"`   // it is gone
		Error    string `json:"error,omitempty"`
		Missing  bool   `json:"missing,omitempty"` // Error is that there is no such program
	}
)

// startAt has the host at addr run what it runs.
func startAt(addr, dir string, args []string) (*Process, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var first word
	if err = out.Encode(order{dir, args}); err == nil {
		err = in.Decode(&first)
	}
	switch {
	case err != nil:
	case first.Missing:
		err = fmt.Errorf("%w: %s", exec.ErrNotFound, first.Error)
	case first.Error != "":
		err = errors.New(first.Error)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	p := &Process{pid: first.PID, exited: make(chan struct{}), log: tail{limit: logKept}}
	answers := make(chan error, 1)
	var one sync.Mutex // held from a signal to its answer
	p.signal = func(name string) error {
		one.Lock()
		defer one.Unlock()
		if err := out.Encode(name); err != nil {
			return err
		}
		select {
		case err := <-answers:
			return err
		case <-p.exited:
			return nil
		}
	}
	go func() {
		defer close(p.exited)
		defer func() { _ = conn.Close() }()
		for {
			var w word
			if err := in.Decode(&w); err != nil {
				_, _ = fmt.Fprintf(&p.log, "\nthe host of the process is gone: %v\n", err)
				return
			}
			_, _ = p.log.Write(w.Log) // never fails
			switch {
			case w.Exited:
				return
			case w.Answered && w.Error != "":
				answers <- errors.New(w.Error)
			case w.Answered:
				answers <- nil
			}
		}
	}()
	return p, nil
}

// Serve runs binary for whoever connects to ln and asks for it, until ln is closed. A
// process ends with the connection that asked for it. Names of files in its arguments may
// be those by which wine knows the files of this machine, as Z:\tmp\x.
//
// Who can connect can have any file read that the program can be told to read: ln must be
// on loopback.
func Serve(ln net.Listener, binary string) error {
	var guests sync.WaitGroup
	defer guests.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		guests.Go(func() {
			defer func() { _ = conn.Close() }()
			serve(conn, binary)
		})
	}
}

// serve runs one process.
func serve(conn net.Conn, binary string) {
	in, out := json.NewDecoder(conn), &mouth{out: json.NewEncoder(conn)}
	var o order
	if in.Decode(&o) != nil {
		return
	}
	for i, arg := range o.Args {
		o.Args[i] = native(arg)
	}
	p := &Process{exited: make(chan struct{})}
	out.mu.Lock() // what it prints comes after the answer
	err := p.start(binary, native(o.Dir), o.Args, out)
	first := word{PID: p.pid}
	if err != nil {
		first = word{Error: err.Error(), Missing: errors.Is(err, exec.ErrNotFound)}
	}
	_ = out.out.Encode(first) // the next read of in finds a broken connection
	out.mu.Unlock()
	if err != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		<-p.exited
		out.say(word{Exited: true})
		_ = conn.Close()
	}()
	for {
		var name string
		if in.Decode(&name) != nil {
			break
		}
		answer := word{Answered: true}
		if err := p.signal(name); err != nil {
			answer.Error = err.Error()
		}
		out.say(answer)
	}
	p.Kill()
	<-gone
}

// native is the name of a file here, if arg is the name that wine has for one.
func native(arg string) string {
	if file, ok := strings.CutPrefix(arg, `Z:\`); ok {
		return "/" + strings.ReplaceAll(file, `\`, "/")
	}
	return arg
}

// mouth tells words, one at a time. A connection that is broken is noticed by who reads.
type mouth struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (m *mouth) say(w word) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.out.Encode(w)
}

func (m *mouth) Write(p []byte) (int, error) {
	m.say(word{Log: p})
	return len(p), nil
}
