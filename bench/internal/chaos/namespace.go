package chaos

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redial-go/redial/bench/internal/client"
)

// StageFlag, as the only argument, makes the program run Stage.
const StageFlag = "-stage"

// part is what a stage in a network namespace of its own is to play.
type part struct {
	Scenario string
	Dialer   Dialer
	Compared bool // see Scenario.With
	Client   string
	How      play
}

// review is what came of it.
type review struct {
	Run   *Run
	Error string
}

// apart makes cmd run in a network namespace of its own, with root's rights in it.
func apart(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// Namespaces returns why scenarios that need a network namespace cannot be played
// here, or nil if they can.
func Namespaces(ctx context.Context) error {
	const try = "ip link set lo up && iptables -w -A INPUT -p tcp --dport 1 -j DROP"
	if out, err := apart(exec.CommandContext(ctx, "sh", "-c", try)).CombinedOutput(); err != nil {
		return fmt.Errorf("no network namespace with iptables: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// performApart plays a scenario in a network namespace of its own: the program starts
// itself again there, with server and client.
func (s *Scenario) performApart(ctx context.Context, kind client.Kind, how play) (*Run, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := apart(exec.CommandContext(ctx, self, StageFlag))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends what it has started
	cmd.WaitDelay = runWithin
	var in, out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &said
	p := part{Scenario: s.Name, Dialer: s.Dialer, Compared: s.compared, Client: kind.Name, How: how}
	if err := gob.NewEncoder(&in).Encode(p); err != nil {
		return nil, err
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("chaos: stage: %w: %s", err, said.String())
	}
	var r review
	if err := gob.NewDecoder(&out).Decode(&r); err != nil {
		return nil, fmt.Errorf("chaos: stage: %w: %s", err, said.String())
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return r.Run, nil
}

// Stage plays a part in the network namespace of this process, which must be a new one.
func Stage(ctx context.Context, in io.Reader, out io.Writer) error {
	var p part
	if err := gob.NewDecoder(in).Decode(&p); err != nil {
		return err
	}
	var r review
	run, err := p.perform(ctx)
	if err != nil {
		r.Error = err.Error()
	} else {
		r.Run = run
	}
	return gob.NewEncoder(out).Encode(r)
}

func (p part) perform(ctx context.Context) (*Run, error) {
	kind, ok := client.Find(p.Client)
	if !ok {
		return nil, fmt.Errorf("chaos: unknown client %q", p.Client)
	}
	for _, s := range Scenarios() {
		if s.Name != p.Scenario {
			continue
		}
		if p.Compared {
			s = s.With(p.Dialer)
		}
		if err := tool("ip", "link", "set", "lo", "up"); err != nil {
			return nil, err
		}
		return s.tryHere(ctx, kind, p.How)
	}
	return nil, fmt.Errorf("chaos: unknown scenario %q", p.Scenario)
}

// tool runs a program in the namespace of this process.
func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// partition has all packets to and from the server, and its sentinel, dropped for a time. They are
// dropped where they arrive: to drop what leaves would be an error that its sender sees.
func partition(st *stage) error {
	var drops []string
	for _, addr := range []string{st.client, st.sentinel} {
		if addr == "" {
			continue
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		drops = append(drops, "-A INPUT -p tcp --dport "+port+" -j DROP", "-A INPUT -p tcp --sport "+port+" -j DROP")
	}
	heal, err := prepareRules("-F INPUT")
	if err != nil {
		return err
	}
	cut, err := prepareRules(drops...)
	if err != nil {
		return errors.Join(err, heal())
	}
	began := time.Now()
	if err := cut(); err != nil {
		return errors.Join(err, heal())
	}
	dropping := time.Now()
	st.expect(st.pong() != nil, "a partitioned server answers")
	time.Sleep(time.Until(began.Add(st.lasting(6*time.Second, 4*time.Second))))
	n, err := droppedPackets()
	st.expect(err == nil && n > 0, "no packet was dropped: %v", err)
	st.outage(began, dropping, time.Now())
	if err := heal(); err != nil {
		return err
	}
	return healthy(st)
}

// prepareRules starts a program that changes the rules of the filter when commit is
// called, and not before: so the moment is known, however busy the machine.
func prepareRules(rules ...string) (commit func() error, err error) {
	cmd := exec.Command("iptables-restore", "-w", "--noflush")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		_, err := fmt.Fprintf(in, "*filter\n%s\nCOMMIT\n", strings.Join(rules, "\n"))
		if err := errors.Join(err, in.Close(), cmd.Wait()); err != nil {
			return fmt.Errorf("iptables-restore: %w: %s", err, bytes.TrimSpace(said.Bytes()))
		}
		return nil
	}, nil
}

// droppedPackets returns how many packets the rules have dropped.
func droppedPackets() (n int, err error) {
	out, err := exec.Command("iptables", "-w", "-nvxL", "INPUT").Output()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "DROP" {
			continue
		}
		packets, err := strconv.Atoi(fields[0])
		if err != nil {
			return 0, err
		}
		n += packets
	}
	return n, nil
}
