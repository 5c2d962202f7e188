// Package process runs servers as processes for tests: here, or where a program of the
// folder host runs, for tests on a system that has no such servers of its own. It knows
// nothing of Redis.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	logKept    = 8 << 10     // bytes
	outputWait = time.Second // a forked child of the server may hold its output open for longer
)

// errSignal is told for a signal that is not known.
var errSignal = errors.New("no such signal")

// Process is one run of a program. It is safe for concurrent use.
type Process struct {
	pid    int
	exited chan struct{} // closed when the process has been reaped
	log    tail
	signal func(string) error
}

// The signals of Process.signal.
const (
	sigKill = "kill"
	sigStop = "stop"
	sigCont = "cont"
)

// Host begins the address of a host, "tcp://host:port"; see [Serve].
const Host = "tcp://"

// Start runs a program in the folder dir. binary is what exec.LookPath takes, or the
// address of a [Host]. The error matches exec.ErrNotFound
// if there is no such program there.
func Start(binary, dir string, args ...string) (*Process, error) {
	if addr, ok := strings.CutPrefix(binary, Host); ok {
		return startAt(addr, dir, args)
	}
	p := &Process{exited: make(chan struct{}), log: tail{limit: logKept}}
	if err := p.start(binary, dir, args, &p.log); err != nil {
		return nil, err
	}
	return p, nil
}

// writer is where the output of a process goes.
type writer interface{ Write([]byte) (int, error) }

// start runs a program of this machine.
func (p *Process) start(binary, dir string, args []string, log writer) error {
	cmd := exec.Command(binary, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr()
	cmd.WaitDelay = outputWait

	started := make(chan error, 1)
	go func() {
		defer close(p.exited)
		// Where the kernel can kill the child with its parent, "parent" means the
		// thread that started it: keep that thread alive until the child is dead.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is nobody's concern; that it did is
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	p.signal = func(name string) error { return signal(cmd.Process, name) }
	return nil
}

// signal sends a signal to a process of this machine.
func signal(p *os.Process, name string) error {
	switch name {
	case sigKill:
		if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	case sigStop:
		return stopProcess(p.Pid)
	case sigCont:
		return continueProcess(p.Pid)
	}
	return fmt.Errorf("%w: %s", errSignal, name)
}

// PID is the number of the process where it runs.
func (p *Process) PID() int { return p.pid }

// Exited is closed when the process is gone and its sockets are closed.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running tells whether the process exists, be it stopped.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Log is the end of what the process has printed.
func (p *Process) Log() string { return p.log.String() }

// Kill sends SIGKILL, which also ends a stopped process, and returns when the process is
// gone. Of one that is gone already it asks nothing.
func (p *Process) Kill() {
	if p.Running() {
		_ = p.signal(sigKill) // fails only if it is dead already
	}
	<-p.exited
}

// Stop stops the process by SIGSTOP and returns when it has stopped. The error matches
// errors.ErrUnsupported where there is no SIGSTOP.
func (p *Process) Stop() error { return p.signal(sigStop) }

// Continue continues a stopped process by SIGCONT. Its errors are those of Stop.
func (p *Process) Continue() error { return p.signal(sigCont) }

// tail keeps the last bytes written to it.
type tail struct {
	limit int
	mu    sync.Mutex
	buf   []byte // guarded by mu
}

func (b *tail) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if extra := len(b.buf) - b.limit; extra > 0 {
		b.buf = b.buf[extra:]
	}
	return len(p), nil
}

func (b *tail) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.TrimSpace(b.buf))
}
