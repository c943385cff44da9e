package main

import (
	"errors"
	"regexp"
	"strings"
)

// What cobra says of flags that do not go together, or of which one is wanted.
var (
	exclusive = regexp.MustCompile(`^if any flags in the group \[.*\] are set none of the others can be; \[(.*)\] were all set$`)
	oneOf     = regexp.MustCompile(`^at least one of the flags in the group \[(.*)\] is required$`)
)

// groups says that of a command in the way in which all else is said here.
func groups(cmd string, err error) error {
	if err == nil {
		return nil
	}
	if m := exclusive.FindStringSubmatch(err.Error()); m != nil {
		return errors.New(flags(m[1], " and ") + " do not go together")
	}
	if m := oneOf.FindStringSubmatch(err.Error()); m != nil {
		return errors.New(cmd + " needs " + flags(m[1], " or "))
	}
	return err
}

func flags(names, between string) string {
	return "--" + strings.Join(strings.Fields(names), between+"--")
}
