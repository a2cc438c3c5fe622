-- Argo CD's health of Vitrine's Images and ImageStores, from the conditions that kstatus reads.
-- Where it goes is said in docs/install.md.

local function condition(name)
  for _, found in ipairs((obj.status or {}).conditions or {}) do
    if found.type == name then return found end
  end
  return {}
end

local ready, reconciling, stalled = condition("Ready"), condition("Reconciling"), condition("Stalled")

if ready.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "Vitrine's operator has not looked at this version yet" }
end
if stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if obj.spec.deactivated then
  return { status = "Suspended", message = "Deactivated: nobody gets the data. " .. ready.message }
end
-- Somebody sends the bytes; a sync that waited for them would never end.
if obj.status.upload ~= nil and obj.status.phase == "Queued" then
  return { status = "Suspended", message = ready.message }
end
if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = ready.message }
end
-- What was in use and is not any more. With an Image that is fetched again a copy serves, or there never was one.
if reconciling.status == "True" and obj.kind == "ImageStore" and ready.status == "False" then
  return { status = "Degraded", message = ready.message }
end
if reconciling.status == "True" then
  return { status = "Progressing", message = ready.message }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
return { status = "Degraded", message = ready.message }
