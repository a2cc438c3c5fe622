// Says how the tools that people deploy from git with read objects: Flux by kstatus, Argo CD by a health script in Lua.
//
// Usage: gitops HEALTH.lua < OBJECT.json        Prints {"kstatus": …, "argo": {"status": …, "message": …}}.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type reading struct {
	Kstatus string `json:"kstatus"`
	Argo    health `json:"argo"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: gitops HEALTH.lua < OBJECT.json")
	}
	script, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var object map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&object); err != nil {
		return err
	}
	result, err := status.Compute(&unstructured.Unstructured{Object: numbers(object).(map[string]any)})
	if err != nil {
		return err
	}
	argo, err := evaluate(string(script), object)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(reading{Kstatus: string(result.Status), Argo: argo})
}

// Runs the script as Argo CD does: only the harmless libraries, the object in `obj`, and the health in what it returns.
func evaluate(script string, object map[string]any) (health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return health{}, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return health{}, fmt.Errorf("the script returned %s instead of a table", state.Get(-1).Type())
	}
	return health{Status: table.RawGetString("status").String(), Message: table.RawGetString("message").String()}, nil
}

func value(state *lua.LState, given any) lua.LValue {
	switch given := given.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, inner := range given {
			table.RawSetString(key, value(state, inner))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, inner := range given {
			table.Append(value(state, inner))
		}
		return table
	case string:
		return lua.LString(given)
	case float64:
		return lua.LNumber(given)
	case bool:
		return lua.LBool(given)
	}
	return lua.LNil
}

// Whole numbers are int64 in what Kubernetes' own decoder makes of JSON, and kstatus asks for that.
func numbers(given any) any {
	switch given := given.(type) {
	case map[string]any:
		whole := make(map[string]any, len(given))
		for key, inner := range given {
			whole[key] = numbers(inner)
		}
		return whole
	case []any:
		whole := make([]any, len(given))
		for i, inner := range given {
			whole[i] = numbers(inner)
		}
		return whole
	case float64:
		if given == float64(int64(given)) {
			return int64(given)
		}
	}
	return given
}
