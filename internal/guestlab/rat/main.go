// Command rat is the lab's helper inside a guest. As "rat agent" it serves the host on a virtio-serial port; it also
// tells facts, holds state and makes load when run by hand:
//
//	rat oracle QUESTION [ARG]   facts as JSON lines; "rat oracle" lists the questions
//	rat storm N SECONDS         N loops that fork and exec
//	rat modstorm SECONDS NAME…  load and unload modules in turn
//	rat spawn JSON              start a process (wire.Spawn) and print its pid
//
// It uses the standard library only, so that the host can build it from embedded sources.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fatal(fmt.Errorf("usage: rat agent | oracle | storm | modstorm | spawn"))
	}
	var err error
	args := os.Args[2:]
	switch os.Args[1] {
	case "agent":
		err = agent()
	default:
		err = fmt.Errorf("no command %q", os.Args[1])
	}
	_ = args
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "rat:", err)
	os.Exit(255)
}
