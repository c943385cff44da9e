package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
)

// A question is one thing that the oracle can tell. With a pid of 0 it tells about all processes.
type question struct {
	name string
	tell func(tell func(any), pid int) error
}

var questions = []question{
	{"ps", tellProcesses},
	{"threads", tellThreads},
	{"lsmod", tellModules},
	{"mounts", tellMounts},
	{"sockets", tellSockets},
	{"fds", tellFDs},
	{"maps", tellMaps},
	{"dmesg", tellLog},
	{"system", tellSystem},
}

// rawQuestions are answered with a file as it is: it is too long to be parsed here, or has no structure.
var rawQuestions = map[string]string{
	"kallsyms": "/proc/kallsyms",
	"iomem":    "/proc/iomem",
	"environ":  "/proc/%d/environ",
	"cmdline":  "/proc/%d/cmdline",
	"auxv":     "/proc/%d/auxv",
}

// oracle answers a question: JSON lines, or a file's bytes.
func oracle(w io.Writer, args []string) error {
	if len(args) == 0 {
		return listQuestions(w)
	}
	pid := 0
	if len(args) > 1 {
		var err error
		if pid, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
	}
	if file, ok := rawQuestions[args[0]]; ok {
		if strings.Contains(file, "%d") {
			file = fmt.Sprintf(file, pid)
		}
		data, err := os.ReadFile(file)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}
	for _, q := range questions {
		if q.name == args[0] {
			enc := json.NewEncoder(w)
			var failed error
			err := q.tell(func(fact any) {
				if err := enc.Encode(fact); err != nil {
					failed = err
				}
			}, pid)
			if err == nil {
				err = failed
			}
			return err
		}
	}
	return fmt.Errorf("no question %q", args[0])
}

func listQuestions(w io.Writer) error {
	var names []string
	for _, q := range questions {
		names = append(names, q.name)
	}
	for name := range rawQuestions {
		names = append(names, name)
	}
	sort.Strings(names)
	_, err := fmt.Fprintln(w, strings.Join(names, "\n"))
	return err
}

// oracleBytes answers within the agent, which adds no process to the answer.
func oracleBytes(args []string) ([]byte, error) {
	var b bytes.Buffer
	err := oracle(&b, args)
	return b.Bytes(), err
}

// pids lists the processes, or just the one that was asked for.
func pids(pid int) ([]int, error) {
	if pid != 0 {
		return []int{pid}, nil
	}
	return numbers("/proc")
}

// numbers lists the entries of a directory that are numbers, in their order.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e); err == nil {
			list = append(list, n)
		}
	}
	sort.Ints(list)
	return list, nil
}
