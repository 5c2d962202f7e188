// SIGSTOP and SIGCONT.

//go:build unix

package process

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func continueProcess(pid int) error { return syscall.Kill(pid, syscall.SIGCONT) }

// stopProcess returns when the process is stopped where that can be seen (Linux),
// elsewhere right after the signal.
func stopProcess(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	if runtime.GOOS != "linux" {
		return nil
	}
	giveUp := time.Now().Add(time.Second)
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		// pid (name) state ...: the name may contain anything, a parenthesis too.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		if strings.HasPrefix(rest, "T") {
			return nil
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("process %d does not stop", pid)
		}
		time.Sleep(time.Millisecond) // no signal tells that the process has stopped
	}
}
