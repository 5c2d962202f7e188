package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/redial-go/redial/bench/internal/render"
)

// facts describes the machine and the versions.
func facts() ([]render.Fact, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil, errors.New("report: no build information")
	}
	versions := make(map[string]string)
	for _, m := range info.Deps {
		versions[m.Path] = m.Version
	}
	server, err := exec.Command("redis-server", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("report: redis-server: %w", err)
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	return []render.Fact{
		{Name: "redial", Value: revision()},
		{Name: "go-redis", Value: versions["github.com/redis/go-redis/v9"]},
		{Name: "rueidis", Value: versions["github.com/redis/rueidis"]},
		{Name: "redigo", Value: versions["github.com/gomodule/redigo"]},
		{Name: "redis-server", Value: field(string(server), "v=", " ")},
		{Name: "Go", Value: strings.TrimPrefix(runtime.Version(), "go") + " " + runtime.GOOS + "/" + runtime.GOARCH},
		{Name: "kernel", Value: strings.TrimSpace(string(kernel))},
		{Name: "processor", Value: fmt.Sprintf("%d × %s", runtime.NumCPU(),
			strings.TrimSpace(strings.TrimLeft(field(string(cpu), "model name", "\n"), "\t :")))},
	}, nil
}

// field returns what stands between two marks.
func field(text, after, before string) string {
	_, text, ok := strings.Cut(text, after)
	if !ok {
		return "unknown"
	}
	text, _, _ = strings.Cut(text, before)
	return text
}

// revision names the source of redial, which is built from the working tree.
func revision() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--tags").Output()
	if err != nil {
		return "this tree"
	}
	return "commit " + strings.TrimSpace(string(out))
}

// root finds the root of the repository: the directory above this module's.
func root() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("report: go env: %w", err)
	}
	dir := filepath.Dir(strings.TrimSpace(string(mod)))
	if filepath.Base(dir) != "bench" {
		return "", errors.New("report: run it in bench/, or say with -o where to write")
	}
	return filepath.Dir(dir), nil
}
