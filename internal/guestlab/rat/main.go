// Command rat is the lab's helper inside a guest. As "rat agent [PORT]" it serves the host on a virtio-serial port or a terminal; it
// also tells facts, holds state and makes load when run by hand:
//
//	rat oracle QUESTION [ARG]   facts as JSON lines; "rat oracle" lists the questions
//	rat storm N SECONDS         N loops that fork and exec
//	rat modstorm SECONDS NAME…  load and unload modules in turn
//	rat bpf SECONDS             programs of eBPF, attached in all ways that there are
//	rat relay PORT TERMINAL     carry bytes between a virtio-serial port and a kernel's console, both ways
//	rat fsync DIR               write files durably, print the number and the slowest, until DIR/stop is there
//	rat spawn JSON              start a process (wire.Spawn) and print its pid
//	rat kexec KERNEL INITRD CMD go over into another kernel
//
// It uses the standard library only, so that the host can build it from embedded sources.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"vmscope/internal/guestlab/wire"
)

func main() {
	if isHolder() {
		hold()
	}
	if len(os.Args) < 2 {
		fatal(errUsage)
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "agent":
		err = agent(args)
	case "relay":
		err = relay(args)
	case "oracle":
		err = oracle(os.Stdout, args)
	case "storm":
		err = storm(args)
	case "modstorm":
		err = modstorm(os.Stdout, args)
	case "bpf":
		err = bpf(os.Stdout, args)
	case "fsync":
		err = fsyncs(args)
	case "spawn":
		err = spawnCommand(args)
	case "kexec":
		err = kexec(args)
	default:
		err = errUsage
	}
	if err != nil {
		fatal(err)
	}
}

var errUsage = errors.New("usage: rat agent | relay | oracle | storm | modstorm | bpf | fsync | spawn | kexec")

// spawnCommand is spawn for a shell. The process outlives this one and is then init's to reap.
func spawnCommand(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: rat spawn JSON")
	}
	var s wire.Spawn
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return err
	}
	pid, err := spawn(&s)
	if err != nil {
		return err
	}
	_, err = fmt.Println(pid)
	return err
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "rat:", err)
	os.Exit(255)
}
