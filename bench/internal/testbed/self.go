package testbed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Self is one more process of this program, which is told what to do by its standard input
// and answers in JSON. Close ends it.
type Self struct {
	In     io.WriteCloser
	Out    *json.Decoder
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

// StartSelf starts one, with a flag as its only argument. It is killed when ctx ends.
func StartSelf(ctx context.Context, flag string) (*Self, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &Self{cmd: exec.CommandContext(ctx, program, flag)}
	s.cmd.Stderr = &s.stderr
	if s.In, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.Out = json.NewDecoder(bufio.NewReader(out))
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close lets the process end, for it has nothing more to hear, and waits for that. The error
// has what it wrote to its standard error.
func (s *Self) Close() error {
	err := s.In.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if failure := s.cmd.Wait(); failure != nil {
		return fmt.Errorf("child: %w: %s", failure, s.stderr.String())
	}
	return err
}
